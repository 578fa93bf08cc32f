package integration_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// protocols are the ways a client can speak with Caddy: HTTP/1.1 in the clear, HTTP/2 and HTTP/3 over TLS.
var protocols = []string{"h1", "h2", "h3"}

// client speaks one protocol with one Caddy. It follows no redirect, asks for no compression, trusts the Caddy's certificate
// and uses no proxy of the environment.
type client struct {
	*http.Client
	URL   string // of the site, without a slash at the end
	proto string

	inUse sync.RWMutex // read-locked by requests
}

// answer is a whole answer.
type answer struct {
	Status  int
	Header  http.Header
	Body    []byte
	Trailer http.Header
}

// client makes a client for one of protocols. The site must be on {$SITE}.
func (p *caddyProc) client(t testing.TB, proto string) *client {
	t.Helper()
	trust := &tls.Config{RootCAs: p.cert.pool, ServerName: "localhost"}
	c := &client{proto: proto, URL: "https://" + p.HTTPS}
	noRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	switch proto {
	case "h1":
		transport := &http.Transport{DisableCompression: true}
		t.Cleanup(transport.CloseIdleConnections)
		c.URL = "http://" + p.HTTP
		c.Client = &http.Client{Transport: transport, CheckRedirect: noRedirect}
	case "h2":
		transport := &http.Transport{DisableCompression: true, TLSClientConfig: trust, ForceAttemptHTTP2: true}
		t.Cleanup(transport.CloseIdleConnections)
		c.Client = &http.Client{Transport: transport, CheckRedirect: noRedirect}
	case "h3":
		patient := &quic.Config{HandshakeIdleTimeout: patience, KeepAlivePeriod: patience / 2}
		transport := &http3.Transport{DisableCompression: true, TLSClientConfig: trust, QUICConfig: patient}
		t.Cleanup(func() { transport.Close() })
		c.Client = &http.Client{Transport: transport, CheckRedirect: noRedirect}
	default:
		t.Fatalf("no such protocol: %q", proto)
	}
	p.clientsMu.Lock()
	defer p.clientsMu.Unlock()
	p.clients = append(p.clients, c)
	return c
}

// eachProtocol runs a test once for each of protocols.
func (p *caddyProc) eachProtocol(t *testing.T, test func(*testing.T, *client)) {
	t.Helper()
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) { test(t, p.client(t, proto)) })
	}
}

// request makes a request. The fields are names and values in turn; a name that comes again is sent again. "Host" is the host.
func (c *client) request(t testing.TB, method, path string, body io.Reader, fields ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, c.URL+path, body)
	check(t, err)
	for i := 0; i < len(fields); i += 2 {
		if name, value := fields[i], fields[i+1]; name == "Host" {
			req.Host = value
		} else {
			req.Header[name] = append(req.Header[name], value) // as written: Add would change the case
		}
	}
	return req
}

// do sends a request and reads the whole answer.
func (c *client) do(t testing.TB, req *http.Request) answer {
	t.Helper()
	a, err := c.try(req)
	if err != nil {
		t.Fatalf("%s %s over %s: %v", req.Method, req.URL.Path, c.proto, err)
	}
	return a
}

// try is do for requests that may fail.
func (c *client) try(req *http.Request) (answer, error) {
	c.inUse.RLock()
	defer c.inUse.RUnlock()
	resp, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, body, resp.Trailer}, err
}

// beginAnew closes connections, unless a request is in progress. The transport of HTTP/3 takes one for idle as soon as it has the head of
// an answer, and closes it in the middle of the content.
func (c *client) beginAnew() {
	if c.inUse.TryLock() {
		c.CloseIdleConnections()
		c.inUse.Unlock()
	}
}

// get asks for a path.
func (c *client) get(t testing.TB, path string, fields ...string) answer {
	t.Helper()
	return c.do(t, c.request(t, http.MethodGet, path, nil, fields...))
}

// post sends a body with its length, as application/octet-stream unless the fields say otherwise.
func (c *client) post(t testing.TB, path string, body []byte, fields ...string) answer {
	t.Helper()
	return c.do(t, c.postRequest(t, path, bytes.NewReader(body), fields...))
}

// postStream sends a body whose length the server does not know.
func (c *client) postStream(t testing.TB, path string, body io.Reader, fields ...string) answer {
	t.Helper()
	return c.do(t, c.postRequest(t, path, io.MultiReader(body), fields...))
}

func (c *client) postRequest(t testing.TB, path string, body io.Reader, fields ...string) *http.Request {
	t.Helper()
	req := c.request(t, http.MethodPost, path, body, fields...)
	if len(req.Header["Content-Type"]) == 0 {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	return req
}

// contextWithCancel is a context that ends with the test at the latest.
func contextWithCancel(t testing.TB) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, cancel
}
