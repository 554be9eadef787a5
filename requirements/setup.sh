#!/bin/sh
# Makes or updates the virtual environment $1 from requirements/run.txt. Says what is missing and how to get it; under
# root on Debian or Ubuntu it installs missing system packages itself, after saying which.
set -eu
venv=$1

usable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

find_python() {
    if [ -n "${STAGECRAFT_PYTHON:-}" ]; then
        echo "$STAGECRAFT_PYTHON"
        return 0
    fi
    for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if command -v "$name" >/dev/null 2>&1 && usable "$name"; then
            echo "$name"
            return 0
        fi
    done
    return 1
}

install() {
    if [ -r /etc/debian_version ] && command -v apt-get >/dev/null 2>&1; then
        if [ "$(id -u)" = 0 ]; then
            echo "doit: installing $* with apt-get"
            apt-get update -qq
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
            return 0
        fi
        echo "doit: missing: $*. Install it with"
        echo "    sudo apt-get install $*"
    else
        echo "doit: missing: Python 3.10 or newer with the modules venv and ensurepip; install it with your system's packages"
    fi
    exit 115
}

if [ -n "${STAGECRAFT_PYTHON:-}" ] && ! usable "$STAGECRAFT_PYTHON"; then
    echo "doit: STAGECRAFT_PYTHON is $STAGECRAFT_PYTHON, which is no Python 3.10 or newer that runs here; set another or unset it"
    exit 115
fi
python=$(find_python) || {
    echo "doit: no Python 3.10 or newer found ($(python3 --version 2>/dev/null || echo 'no python3 at all'))"
    install python3 python3-venv
    python=$(find_python) || { echo "doit: this system's Python is older than 3.10; set STAGECRAFT_PYTHON to a newer one"; exit 115; }
}
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    echo "doit: $python has no venv module"
    install "$version"
fi

mkdir -p "$venv"
exec 9>"$venv/.setup-lock"
if command -v flock >/dev/null 2>&1; then
    flock 9
    if [ -x "$venv/bin/python" ] && cmp -s requirements/run.txt "$venv/requirements.run.txt"; then
        exit 0 # another terminal did it while this one waited
    fi
fi
echo "doit: making the Python environment in $venv (once, and when requirements/run.txt changes)"
if ! [ -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    # Made anew, and not with --clear: that would take the lock too, and all else if $venv is no environment.
    if [ -e "$venv/pyvenv.cfg" ]; then
        (cd "$venv" && rm -rf bin lib lib64 include share pycache requirements.run.txt requirements.test.txt pyvenv.cfg)
    fi
    # By the interpreter's own name, /usr/bin/python3.11: when an upgrade takes it away the environment ends visibly,
    # while python3 would go on as another version without its packages.
    python=$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
    "$python" -m venv "$venv"
fi
if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
    -r requirements/run.txt; then
    echo "doit: the packages could not be installed: is the package index reachable, and pip configured for it?"
    exit 112
fi
# So that plain `doit build:thor` in this environment finds the project's modules too.
"$venv/bin/python" -c '
import os, sysconfig
with open(os.path.join(sysconfig.get_path("purelib"), "stagecraft.pth"), "w") as file:
    file.write(os.getcwd() + "\n")'
# Checks that run an image's code do it in bubblewrap. Without it they are skipped, so this is no reason to fail.
if ! command -v bwrap >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ] && [ -r /etc/debian_version ] && command -v apt-get >/dev/null 2>&1; then
        echo "doit: installing bubblewrap with apt-get (the check load runs in it)"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends bubblewrap; } \
            >/dev/null || echo "doit: bubblewrap could not be installed: the check load will be skipped"
    else
        echo "doit: note: bubblewrap is not installed, the check load will be skipped; sudo apt-get install bubblewrap"
    fi
fi
cp requirements/run.txt "$venv/requirements.run.txt.new"
mv "$venv/requirements.run.txt.new" "$venv/requirements.run.txt"
