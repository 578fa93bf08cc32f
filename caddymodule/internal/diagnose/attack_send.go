package diagnose

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
)

// attackAgent names the sender in the logs of the site.
const attackAgent = "caddy-oz-instant-attack"

// maxAnswer is as much of an answer as is looked at.
const maxAnswer = 256 << 10

// request is one as a client may write it. Lines are "Name: value" and go as they are.
type request struct {
	method, target string
	fields         []string
	body           []byte
	chunked        bool // over HTTP/1.1; HTTP/2 then leaves the length unsaid
	trailers       []string
}

// probe is a request, or several, on a connection of their own.
type probe struct {
	what    string
	h2      bool
	request request
	needs   need
	raw     string // what to send over HTTP/1.1 instead of a request
	expects int    // answers, if more than one
	tunnel  bool   // after a 101 ask again, inside
	twice   bool   // from two connections at the same time
	keeps   bool   // it is genuine, and must stay a success
	hangs   bool   // the site may rightly wait for more
}

func (s probe) String() string {
	proto := "HTTP/1.1"
	if s.h2 {
		proto = "HTTP/2"
	}
	what := s.what
	if what == "" {
		what = s.request.method + " " + s.request.target
	}
	return what + " over " + proto
}

// said returns the client's own text, less capsules.
func (s probe) said() string {
	lines := append(append([]string{s.raw, s.request.target}, s.request.fields...), s.request.trailers...)
	if s.needs == nothing {
		lines = append(lines, string(s.request.body))
	}
	if s.tunnel {
		lines = append(lines, forgedFolder)
	}
	return strings.Join(lines, "\n")
}

// allowed returns how many successes are in order.
func (s probe) allowed() int {
	if s.keeps || s.needs == genuine {
		return 1
	}
	return 0
}

// requests returns how many requests the site may count.
func (s probe) requests() int {
	n := max(s.expects, 1)
	if s.twice || s.tunnel {
		n++
	}
	return n
}

// cost returns requests, and one more for the control, if there is one.
func (s probe) cost(a *attack) int {
	if s.wantsControl(a) {
		return s.requests() + 1
	}
	return s.requests()
}

// wantsControl reports whether the site may answer the request's method or target in a way that was not learnt.
func (s probe) wantsControl(a *attack) bool {
	return s.raw == "" && !s.tunnel && (s.request.target != a.opts.Path || s.request.method != http.MethodGet && s.request.method != http.MethodPost)
}

// send sends a probe and returns the answers that came in time. A site may close the connection without any: the error is for a
// site that can't be reached.
func (a *attack) send(ctx context.Context, s probe) ([]reply, error) {
	if s.twice {
		return a.sendTwice(ctx, s)
	}
	return a.sendOnce(ctx, s)
}

func (a *attack) sendTwice(ctx context.Context, s probe) ([]reply, error) {
	var wg sync.WaitGroup
	var answers [2][]reply
	var errs [2]error
	for i := range 2 {
		wg.Go(func() { answers[i], errs[i] = a.sendOnce(ctx, s) })
	}
	wg.Wait()
	return append(answers[0], answers[1]...), errors.Join(errs[0], errs[1])
}

func (a *attack) sendOnce(ctx context.Context, s probe) ([]reply, error) {
	timeout := a.opts.Timeout
	if s.hangs {
		timeout /= 10 // the site may rightly wait for what never comes
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	proto := "http/1.1"
	if s.h2 {
		proto = "h2"
	}
	conn, err := a.dial(ctx, proto)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if s.h2 {
		return a.sendH2(conn, s)
	}
	return a.sendH1(conn, s)
}

// dial connects to the site.
func (a *attack) dial(ctx context.Context, proto string) (net.Conn, error) {
	var dialer net.Dialer
	if a.opts.To.Scheme != "https" {
		return dialer.DialContext(ctx, "tcp", hostPort(a.opts.To.Host, "80"))
	}
	config := a.opts.TLS.Clone()
	config.NextProtos = []string{proto}
	if config.ServerName == "" {
		config.ServerName = a.opts.To.Hostname()
	}
	return (&tls.Dialer{NetDialer: &dialer, Config: config}).DialContext(ctx, "tcp", hostPort(a.opts.To.Host, "443"))
}

func hostPort(host, port string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), port)
}

// sendH1 writes while it reads: a site may refuse before it has got everything.
func (a *attack) sendH1(conn net.Conn, s probe) (answers []reply, err error) {
	text := []byte(s.raw)
	if s.raw == "" {
		text = a.h1(s.request)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = conn.Write(text) // a failure shows in the answers
	}()
	defer func() {
		conn.Close()
		<-written
	}()
	in := bufio.NewReader(conn)
	for len(answers) < max(s.expects, 1) {
		got, ok := readH1(in, s.request.method)
		if !ok {
			return answers, nil
		}
		answers = append(answers, got)
		if got.status == http.StatusSwitchingProtocols && s.tunnel {
			inside, err := a.through(conn, in)
			return append(answers, inside...), err
		}
	}
	return answers, nil
}

// readH1 reads an answer, and skips informational ones. It reports false if there isn't a whole one.
func readH1(in *bufio.Reader, method string) (reply, bool) {
	for {
		resp, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			return reply{}, false
		}
		if resp.StatusCode < http.StatusOK && resp.StatusCode != http.StatusSwitchingProtocols {
			_ = resp.Body.Close() // there is none
			continue
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		_ = resp.Body.Close() // reads the rest: the next answer begins after it
		return newReply(resp, body), err == nil || len(body) > 0
	}
}

// h1 returns a request as text. Unless it names Connection itself, it is the last on its connection.
func (a *attack) h1(r request) []byte {
	var out bytes.Buffer
	start := a.start(r.method, r.target)
	if names(r.fields, "user-agent") {
		start = strings.Replace(start, "User-Agent: "+attackAgent+"\r\n", "", 1)
	}
	out.WriteString(start)
	for _, line := range r.fields {
		fmt.Fprintf(&out, "%s\r\n", line)
	}
	if !names(r.fields, "connection") {
		out.WriteString("Connection: close\r\n")
	}
	switch {
	case r.chunked:
		out.WriteString("Transfer-Encoding: chunked\r\n\r\n")
		if len(r.body) > 0 {
			fmt.Fprintf(&out, "%x\r\n%s\r\n", len(r.body), r.body)
		}
		out.WriteString("0\r\n")
		for _, line := range r.trailers {
			fmt.Fprintf(&out, "%s\r\n", line)
		}
		out.WriteString("\r\n")
	case r.body != nil:
		fmt.Fprintf(&out, "Content-Length: %d\r\n\r\n%s", len(r.body), r.body)
	default:
		out.WriteString("\r\n")
	}
	return out.Bytes()
}

// start returns the beginning of all requests over HTTP/1.1.
func (a *attack) start(method, target string) string {
	lines := append([]string{method + " " + target + " HTTP/1.1", "Host: " + a.opts.To.Host, "User-Agent: " + attackAgent}, a.opts.Fields...)
	return strings.Join(lines, "\r\n") + "\r\n"
}

// names reports whether a field of this name is among lines.
func names(lines []string, name string) bool {
	for _, line := range lines {
		if field, _, _ := strings.Cut(line, ":"); strings.EqualFold(strings.TrimSpace(field), name) {
			return true
		}
	}
	return false
}

// through asks inside of a connection that the site made a tunnel.
func (a *attack) through(conn net.Conn, in *bufio.Reader) ([]reply, error) {
	h2, err := openH2(&tunnelled{conn, in})
	if err != nil {
		return nil, nil // the app speaks something else
	}
	inside := a.json(forgedDecision)
	inside.method = http.MethodPost
	got, ok := h2.do(3, a.h2Fields(inside), inside) // stream 1 is the request that was upgraded
	if !ok {
		return nil, nil
	}
	return []reply{got}, nil
}

// tunnelled is a connection of which some bytes were read ahead.
type tunnelled struct {
	net.Conn
	in *bufio.Reader
}

func (t *tunnelled) Read(p []byte) (int, error) { return t.in.Read(p) }
