"""llama.cpp's server as a process of its own, to be killed: `python -m tests.llama_server PORT MODEL_PATH`."""

import signal
import sys

import xllamacpp


def main(port: int, path: str) -> None:
    """Serve the model as "small", two answers at once, until a signal comes."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = {"small"}
    params.n_parallel = 2
    params.n_ctx = 4096
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.verbosity = 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
