@echo off
rem Starts the service on an NVIDIA GPU: run-gpu.bat [options of `main.py websocket`]
rem The first start makes .venv and installs requirements\service.lock into it; later ones just start.
setlocal EnableExtensions DisableDelayedExpansion
cd /d "%~dp0"

rem Only a hint: the service itself looks for the device when it starts, and says what it found.
where nvidia-smi >nul 2>&1 || echo nvidia-smi is not on the PATH: NVIDIA's driver seems to be missing. Without a GPU, use run-cpu.bat. 1>&2

call scripts\environment.bat cuda
if errorlevel 1 exit /b 1
.venv\Scripts\python.exe main.py websocket %*
exit /b %ERRORLEVEL%
