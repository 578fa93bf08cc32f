package main

import (
	"fmt"
	"maps"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestReadTraces promises that each stack's time is counted once, for what its innermost functions are for.
func TestReadTraces(t *testing.T) {
	var text strings.Builder
	text.WriteString("File: caddy\nType: cpu\nDuration: 4s, Total samples = 1.23s\n")
	want := spending{}
	for i, row := range []struct {
		on    string
		stack string
	}{
		{onTransfer, "internal/runtime/syscall/linux.Syscall6|syscall.read|net.(*conn).Read|net/http.(*persistConn).Read"},
		{onConnecting, "internal/runtime/syscall/linux.Syscall6|syscall.connect|net.(*netFD).connect|net.(*netFD).dial|github.com/oz-instant/m.dial"},
		{onTLS, "crypto/internal/fips140/aes/gcm.gcmAesDec|crypto/tls.(*Conn).Read|net/http.(*conn).serve"},
		{onTLS, "runtime.nanotime (inline)|time.Now|crypto/tls.(*Conn).Read"},
		{onCopying, "runtime.memmove|golang.org/x/net/http2.(*dataBuffer).Write"},
		{onMemory, "runtime.scanobject|runtime.gcDrain|runtime.gcBgMarkWorker"},
		{onMemory, "runtime.nextFreeFast (inline)|runtime.mallocgc|runtime.newobject|github.com/oz-instant/m.f"},
		{onGoroutines, "runtime.futex|runtime.findRunnable|runtime.schedule|runtime.mcall"},
		{onGoroutines, "runtime.adjustframe|runtime.copystack|runtime.newstack|github.com/oz-instant/m.f"},
		{onHTTP, "bufio.(*Reader).Peek|net/http.(*persistConn).readLoop"},
		{onCaddy, "go.uber.org/zap.(*Logger).With|github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy.(*Handler).reverseProxy|github.com/oz-instant/m.f"},
		{onModule, "indexbytebody|bytes.IndexByte|github.com/oz-instant/m.f|github.com/caddyserver/caddy/v2.g|net/http.serve"},
		{onOther, "runtime.sysmon"},
	} {
		took := time.Duration(1<<i) * 10 * time.Millisecond
		fmt.Fprintf(&text, "-----------+----------\n%10v   %s\n", took, strings.ReplaceAll(row.stack, "|", "\n             "))
		want[row.on] += took
	}
	text.WriteString("-----------+----------\n")
	got, err := readTraces(text.String())
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"", "File: caddy\n", "-----\n  much  f\n", "-----\n  10ms\n"} {
		if got, err := readTraces(bad); err == nil {
			t.Errorf("%q: got %v", bad, got)
		}
	}
}

// TestProfile promises a figure for all that CPU time is spent on, and their sum.
func TestProfile(t *testing.T) {
	t.Parallel()
	var stdout, stderr strings.Builder
	args := []string{"profile", "--caddy", caddy(t), "--sizes", "50000", "--protocols", "h1", "--clients", "2", "--for", "1s"}
	if err := execute(t.Context(), args, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	want := `^Caddy v2\..* best shot of 400000 characters, 2 clients\n\nCPU of the gateway per capsule, µs +\(1\)\n`
	for _, what := range spentOnAll {
		want += "  " + regexp.QuoteMeta(what) + ` +\d+\n`
	}
	want += `  in all +[1-9]\d+\n  \(1\) capsules of 50000, HTTP/1\.1: [1-9]\d+\n$`
	if !regexp.MustCompile(want).MatchString(stdout.String()) {
		t.Errorf("no %s in\n%s", want, stdout.String())
	}
}
