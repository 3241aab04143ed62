"""Entry point: `python main.py --help`."""

from llm_service.cli import main

if __name__ == "__main__":
    main()
