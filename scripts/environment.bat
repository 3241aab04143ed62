@echo off
rem Called by the start scripts, in the repository's root: environment.bat DEVICE
rem Makes .venv hold requirements\service.lock, and sets COMPUTE_DEVICE unless the environment or .env does;
rem auto in .env leaves the choice to the script.

rem The quick way, and the only one from the second start on: no search, no network.
.venv\Scripts\python.exe -I -S scripts\environment.py --check service >nul 2>&1 && goto :device

rem A name on the PATH proves nothing: Windows has a python.exe that only opens its store.
set "FOUND_PYTHON="
for %%P in ("py -3.13" "py -3.12" "py -3.11" "py -3" "python3" "python") do (
    if not defined FOUND_PYTHON (
        %%~P -I -c "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))" >nul 2>&1 && set "FOUND_PYTHON=%%~P"
    )
)
if not defined FOUND_PYTHON (
    echo Python 3.11 or newer is needed, and none was found. Install it from https://www.python.org/downloads/ 1>&2
    echo with "Add python.exe to PATH" ticked, and try again. 1>&2
    exit /b 1
)
%FOUND_PYTHON% -I scripts\environment.py service
if errorlevel 1 exit /b 1

:device
if defined COMPUTE_DEVICE exit /b 0
if exist .env (
    findstr /r /c:"^ *COMPUTE_DEVICE *= *[^ ]" .env 2>nul | findstr /v /i auto >nul && exit /b 0
)
set "COMPUTE_DEVICE=%~1"
exit /b 0
