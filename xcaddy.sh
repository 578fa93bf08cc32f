#!/usr/bin/env bash
# Builds Caddy with oz_instant, or runs it in front of a stand-in for Oz Instant.
#
#   ./xcaddy.sh [build]   builds ./caddy and checks it
#   ./xcaddy.sh run [Caddyfile]
#                         builds, starts sandbox, demo app and Caddy with Caddyfile.example, or another Caddyfile that reads
#                         the variables below; Ctrl-C ends all of it
#
# Needs Go and bash (3.2 will do). The Caddy version is the one that go.mod names: what is built is what was tested.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

module=github.com/oz-instant/caddy-oz-instant

# Caddyfile.example reads the same variables and has the same defaults.
export SITE=${SITE:-http://localhost:8080}
export OZ_URL=${OZ_URL:-http://127.0.0.1:9000}
export APP_URL=${APP_URL:-http://127.0.0.1:3000}
export CADDY_ADMIN=${CADDY_ADMIN:-localhost:2019}

say() { printf '\n==> %s\n' "$*"; }
die() {
	printf '\nxcaddy.sh: %s\n' "$*" >&2
	exit 1
}

tmp=$(mktemp -d)
jobs=() # process groups that `run` has started
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

clean_up() {
	trap '' HUP INT TERM USR1
	if [ ${#jobs[@]} -gt 0 ]; then
		kill -TERM "${jobs[@]/#/-}" 2>/dev/null || true
		# What does not end within ten seconds is killed.
		(sleep 10 && kill -KILL "${jobs[@]/#/-}") >/dev/null 2>&1 &
		{
			wait "${jobs[@]}" || true
			kill -KILL -$! && wait $! || true
		} 2>/dev/null
	fi
	rm -rf "$tmp"
}

check_go() {
	local wanted have
	command -v go >/dev/null || die 'Go was not found. Install it from https://go.dev/dl/ and try again.'
	wanted=$(sed -n 's/^go //p' go.mod)
	# GOVERSION is the toolchain that go.mod made Go fetch, where it may; asking fails where it may not.
	have=$(go env GOVERSION 2>/dev/null) || have=$(cd / && GOTOOLCHAIN=local go env GOVERSION)
	have=${have#go}
	[ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ] ||
		die "Go $wanted or newer is needed, this is Go $have. Install a newer one from https://go.dev/dl/."
}

# stamp prints the version that `./caddy list-modules --versions` shows for this module: the tag of the commit, or for a commit
# without one what Go itself calls it, v0.0.0-20060102150405-abcdefabcdef and after v0.3.0 v0.3.1-0.2006…. Changes that are in no
# commit show as .dirty, and a folder without git as v0.0.0-unknown.
stamp() {
	local hash last dirty='' tags='v[0-9]*.[0-9]*.[0-9]*'
	# Of a repository that this folder is only a part of, the commits say nothing.
	hash=$(git rev-parse --short=12 HEAD 2>/dev/null) && [ -z "$(git rev-parse --show-prefix)" ] || { echo v0.0.0-unknown && return; }
	[ -z "$(git status --porcelain)" ] || dirty=.dirty
	if [ -z "$dirty" ] && git describe --tags --exact-match --match "$tags" 2>/dev/null; then
		return
	fi
	last=$(git describe --tags --abbrev=0 --match "$tags" --exclude '*-*' 2>/dev/null) && last=${last%.*}.$((${last##*.} + 1))-0. || last=v0.0.0-
	echo "$last$(TZ=UTC git log -1 --format=%cd --date=format-local:%Y%m%d%H%M%S)-$hash$dirty"
}

build() {
	local version stamp
	check_go
	stamp=$(stamp)
	version=$(go list -m -f '{{.Version}}' github.com/caddyserver/caddy/v2)
	say "building ./caddy: Caddy $version with oz_instant (minutes the first time, seconds later)"

	# This folder stands in for the module, yet Go first asks the module proxy which versions of it there are. Where the path
	# is not published, a proxy that answers "forbidden" instead of "not found" ends the build. So an empty proxy goes first
	# and knows no version of our paths, not even the one that is stamped. All else comes from the usual proxies, with its checksums verified.
	local path
	for path in "$module" "$module/caddymodule" "$module/caddymodule/redis"; do
		mkdir -p "$tmp/proxy/$path/@v"
		: >"$tmp/proxy/$path/@v/list"
	done
	GOPROXY="file://$tmp/proxy,$(go env GOPROXY)" go tool xcaddy build "$version" --output ./caddy \
		--with "$module/caddymodule@$stamp" --with "$module/caddymodule/redis@$stamp" --replace "$module@$stamp=." >"$tmp/log" 2>&1 ||
		die "the build failed: $(cat "$tmp/log")"

	# Not through a pipe: grep leaves at its first match, and Caddy would fail to write the rest.
	./caddy list-modules --versions >"$tmp/modules" && grep -qx "http.handlers.oz_instant $stamp" "$tmp/modules" &&
		grep -qx "http.handlers.oz_instant.replay.redis $stamp" "$tmp/modules" && grep -qx "http.handlers.oz_instant.slots.redis $stamp" "$tmp/modules" ||
		die "./caddy came out without http.handlers.oz_instant and its stores in Redis at $stamp."
	./caddy validate --config Caddyfile.example >"$tmp/log" 2>&1 ||
		die "Caddyfile.example is not valid: $(cat "$tmp/log")"
	say "./caddy is ready: $(./caddy version), oz_instant $stamp"
}

# port prints the port of an address, or 80 or 443 where it has none.
port() {
	case $1 in
	*:*[0-9]) printf '%s' "${1##*:}" ;;
	https://*) printf 443 ;;
	*) printf 80 ;;
	esac
}

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$(port "$1")") 2>/dev/null; }

must_be_free() {
	! answers "$1" || die "port $(port "$1") is in use. End what uses it, or choose another with $2, such as $2=${1%:*}:$3."
}

# start runs a program in a process group of its own. When it ends before it is told to, all ends.
start() {
	local name=$1 told=
	shift
	{
		trap 'told=1' TERM # and wait for the program all the same
		"$@" </dev/null || true
		if [ -z "$told" ]; then
			printf '\nxcaddy.sh: %s has ended; its last lines stand above.\n' "$name" >&2
			kill -USR1 $$
		fi
	} &
	jobs+=($!)
}

wait_for() {
	local tries=0
	until answers "$1"; do
		tries=$((tries + 1))
		[ $tries -lt 150 ] || die "$2 did not answer on port $(port "$1") within 30 seconds."
		sleep 0.2
	done
}

run() {
	local site config=${1:-Caddyfile.example}
	[ -r "$config" ] || die "there is no $config."
	case $OZ_URL,$APP_URL in
	http://127.0.0.1:*,http://127.0.0.1:*) ;;
	*) die "run plays with a sandbox on this machine. For your own Oz and app: ./caddy run --config Caddyfile.example" ;;
	esac
	case $SITE in
	*://*) site=$SITE ;;
	:*) site=http://localhost$SITE ;;
	*) site=https://$SITE ;;
	esac
	build
	go build -buildvcs=false -o "$tmp/ozsandbox" ./integration/cmd/ozsandbox
	must_be_free "$SITE" SITE 8081
	must_be_free "$OZ_URL" OZ_URL 9001
	must_be_free "$APP_URL" APP_URL 3001
	must_be_free "$CADDY_ADMIN" CADDY_ADMIN 2020

	trap 'exit 1' USR1
	set -m # process groups, so that nothing is left of a job when it is ended
	# An analysis takes a second, so that the demo page can show a queue; the real Oz takes about three.
	start 'the sandbox' "$tmp/ozsandbox" run --oz "${OZ_URL#http://}" --app "${APP_URL#http://}" --analysis-time 1s \
		--site "$site" --admin "http://$CADDY_ADMIN"
	# Caddy notes its last config below XDG_CONFIG_HOME; this one is not worth keeping.
	start Caddy env XDG_CONFIG_HOME="$tmp" ./caddy run --config "$config" --adapter caddyfile
	wait_for "$OZ_URL" 'the sandbox'
	wait_for "$APP_URL" 'the demo app'
	wait_for "$SITE" Caddy
	try_next
	wait
}

try_next() {
	local oz=
	[ "$OZ_URL" = http://127.0.0.1:9000 ] || oz=" --oz $OZ_URL"
	say "running; Ctrl-C ends it. Open $SITE in a browser, or try in a second terminal:"
	cat <<-END

		go run ./integration/cmd/ozsandbox capsule$oz --outcome SUCCESS -o capsule.bin
		curl -sS -H 'Content-Type: application/octet-stream' --data-binary @capsule.bin $SITE/verify

	END
}

case ${1:-build} in
build) build ;;
run) run "${@:2}" ;;
*) die "there is no command $1; there are build and run." ;;
esac
