// Compose-check reads a compose file as Docker Compose does, by the library that it is made of, and prints what
// it understood. For the tests, on machines without Docker:
//
//	go build -C scripts/compose-check -o ~/.local/bin/compose-check
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: compose-check FILE")
		os.Exit(2)
	}
	if err := check(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func check(file string) error {
	options, err := cli.NewProjectOptions([]string{file}, cli.WithOsEnv, cli.WithEnvFiles(), cli.WithDotEnv)
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	understood, err := project.MarshalYAML()
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(understood)
	return err
}
