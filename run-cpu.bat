@echo off
rem Starts the service on the CPU: run-cpu.bat [options of `main.py websocket`]
rem The first start makes .venv and installs requirements\service.lock into it; later ones just start.
setlocal EnableExtensions DisableDelayedExpansion
cd /d "%~dp0"

call scripts\environment.bat cpu
if errorlevel 1 exit /b 1
.venv\Scripts\python.exe main.py websocket %*
exit /b %ERRORLEVEL%
