"""What a word costs in this service, beside a floor and its peers. `python -m benchmarks --help`."""
