// Package credulous is an app that believes all that real apps and their servers have been made to believe. It shows what a gateway
// in front of it lets through.
//
// It decides by X-Oz-Decision, as an app should. But it
//
//   - folds the names of fields as CGI does: letters and digits count, all else is one and the same separator;
//   - takes trailers for fields of the header;
//   - lets in if any of several decisions is SUCCESS;
//   - keeps the first 1,000 lines of a header and drops the others, as Node does;
//   - decompresses what Content-Encoding says is compressed;
//   - accepts an upgrade to h2c, and so everything that comes through the tunnel;
//   - believes X-Oz-Seal without checking the signature;
//   - and on its protected path takes JSON without any decision for a folder that the gateway let through.
//
// Behind a gateway that keeps its promises, all that does no harm.
package credulous

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Path is the protected path. Elsewhere the app wants to see a decision.
const Path = "/verify"

// maxLines is how many lines of a header are kept.
const maxLines = 1000

// App is a server of HTTP/1.1 that reads requests as they come: no library tidies them up first.
type App struct {
	listener net.Listener
	mu       sync.Mutex
	conns    map[net.Conn]bool
	closed   bool
}

// Start starts an app on a port of its own.
func Start() (*App, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	a := &App{listener: listener, conns: map[net.Conn]bool{}}
	go a.serve()
	return a, nil
}

// Addr returns the address that the app listens on.
func (a *App) Addr() string { return a.listener.Addr().String() }

// Close ends the app and its connections.
func (a *App) Close() {
	a.listener.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for conn := range a.conns {
		conn.Close()
	}
}

func (a *App) serve() {
	for {
		conn, err := a.listener.Accept()
		if err != nil {
			return
		}
		go func() {
			if a.track(conn) {
				serveConn(conn)
			}
			conn.Close()
			a.mu.Lock()
			defer a.mu.Unlock()
			delete(a.conns, conn)
		}()
	}
}

func (a *App) track(conn net.Conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conns[conn] = true
	return !a.closed
}

// request is a request as the app understands it.
type request struct {
	method, path string
	fields       map[string][]string // by folded name
	json         bool                // the body is an object
}

func serveConn(conn net.Conn) {
	in := bufio.NewReader(conn)
	for {
		r, err := readRequest(in)
		if err != nil {
			return
		}
		if strings.Contains(strings.ToLower(strings.Join(r.fields["upgrade"], ",")), "h2c") {
			tunnel(conn, in)
			return
		}
		status, verdict := r.decide()
		body := fmt.Sprintf("{\"verdict\":%q}\n", verdict)
		if _, err := fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
			status, http.StatusText(status), len(body), r.content(body)); err != nil {
			return
		}
	}
}

// content returns the body of an answer, which HEAD has none of.
func (r request) content(body string) string {
	if r.method == http.MethodHead {
		return ""
	}
	return body
}

// tunnel goes on in HTTP/2.
func tunnel(conn net.Conn, in *bufio.Reader) {
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"); err != nil {
		return
	}
	handler := func(w http.ResponseWriter, hr *http.Request) {
		body, _ := io.ReadAll(hr.Body)
		r := request{method: hr.Method, path: hr.URL.Path, fields: map[string][]string{}, json: isObject(body)}
		for _, h := range []http.Header{hr.Header, hr.Trailer} {
			for name, values := range h {
				r.fields[fold(name)] = append(r.fields[fold(name)], values...)
			}
		}
		status, verdict := r.decide()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, "{\"verdict\":%q}\n", verdict)
	}
	server := &http.Server{Handler: http.HandlerFunc(handler), Protocols: new(http.Protocols), ReadHeaderTimeout: time.Minute}
	server.Protocols.SetUnencryptedHTTP2(true)
	server.Serve(&only{Conn: conn, in: in, closed: make(chan struct{})}) // up to the end of the connection
}

// only is a listener with one connection, of which some bytes were read ahead, and that connection.
type only struct {
	net.Conn
	in       *bufio.Reader
	accepted bool
	once     sync.Once
	closed   chan struct{}
}

func (o *only) Accept() (net.Conn, error) {
	if o.accepted {
		<-o.closed
		return nil, net.ErrClosed
	}
	o.accepted = true
	return o, nil
}

func (o *only) Addr() net.Addr { return o.LocalAddr() }

func (o *only) Read(p []byte) (int, error) { return o.in.Read(p) }

func (o *only) Close() error {
	o.once.Do(func() { close(o.closed) })
	return o.Conn.Close()
}

// decide lets in, or does not.
func (r request) decide() (status int, verdict string) {
	decisions := append(r.fields["x-oz-decision"], sealed(r.fields["x-oz-seal"])...)
	switch {
	case slices.Contains(decisions, "SUCCESS"):
		return http.StatusOK, "welcome"
	case len(decisions) > 0:
		return http.StatusForbidden, "no entry"
	case r.path == Path && r.json:
		return http.StatusOK, "welcome"
	}
	return http.StatusUnauthorized, "not decided"
}

// sealed returns the decisions in compact JWS, whoever signed them.
func sealed(tokens []string) (decisions []string) {
	for _, token := range tokens {
		parts := strings.Split(token, ".")
		var claims struct{ Decision string }
		if len(parts) != 3 {
			continue
		}
		payload, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err == nil && json.Unmarshal(payload, &claims) == nil && claims.Decision != "" {
			decisions = append(decisions, claims.Decision)
		}
	}
	return decisions
}

func isObject(body []byte) bool {
	var object map[string]any
	return json.Unmarshal(body, &object) == nil && object != nil
}

// fold returns a name as CGI and its kind read it.
func fold(name string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			return c
		}
		return '-'
	}, strings.ToLower(name))
}

func readRequest(in *bufio.Reader) (r request, err error) {
	line, err := readLine(in)
	if err != nil {
		return r, err
	}
	method, rest, _ := strings.Cut(line, " ")
	target, _, _ := strings.Cut(rest, " ")
	r.path, _, _ = strings.Cut(target, "?")
	r.method, r.fields = method, map[string][]string{}
	length, chunked, err := r.readHeader(in)
	if err != nil {
		return r, err
	}
	body, err := readBody(in, length, chunked)
	if err != nil {
		return r, err
	}
	if chunked {
		if err := r.readFields(in, func(string, string) {}); err != nil { // trailers
			return r, err
		}
	}
	if strings.HasSuffix(strings.ToLower(strings.Join(r.fields["content-encoding"], ",")), "gzip") {
		body = decompress(body)
	}
	r.json = isObject(body)
	return r, nil
}

// decompress returns nothing for what is not compressed.
func decompress(body []byte) []byte {
	zipped, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(zipped, maxBody))
	if err != nil {
		return nil
	}
	return text
}

func (r *request) readHeader(in *bufio.Reader) (length int64, chunked bool, err error) {
	err = r.readFields(in, func(name, value string) {
		switch strings.ToLower(name) { // the framing is the gateway's, and read by exact name
		case "content-length":
			length, _ = strconv.ParseInt(value, 10, 64)
		case "transfer-encoding":
			chunked = strings.EqualFold(value, "chunked")
		}
	})
	return length, chunked, err
}

// readFields reads lines up to an empty one and keeps the first of them.
func (r *request) readFields(in *bufio.Reader, see func(name, value string)) error {
	for n := 0; ; n++ {
		line, err := readLine(in)
		if err != nil || line == "" {
			return err
		}
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		see(name, value)
		if n < maxLines {
			r.fields[fold(name)] = append(r.fields[fold(name)], value)
		}
	}
}

const maxBody = 8 << 20

func readBody(in *bufio.Reader, length int64, chunked bool) ([]byte, error) {
	switch {
	case chunked:
		return io.ReadAll(httputil.NewChunkedReader(in)) // up to the last chunk: trailers come after it
	case length < 0 || length > maxBody:
		return nil, errors.New("too long")
	}
	body := make([]byte, length)
	_, err := io.ReadFull(in, body)
	return body, err
}

func readLine(in *bufio.Reader) (string, error) {
	line, err := in.ReadString('\n')
	return strings.TrimRight(line, "\r\n"), err
}
