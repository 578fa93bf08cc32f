package caddymodule

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/dustin/go-humanize"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// certificateMargin is how long a certificate has to be good for.
const certificateMargin = 14 * 24 * time.Hour

// look does all checks, in the order in which things can go wrong.
func (c *checker) look(ctx context.Context) {
	calls := []string{"session token", "empty capsule", "garbage capsule"}
	if c.capsule != nil {
		calls = append(calls, "capsule")
	}
	if c.target.oz.Credentials != nil {
		calls = append([]string{"log-in"}, calls...)
	}
	if !c.step(ctx, "configuration", c.configure) {
		c.skip(calls...)
		return
	}
	defer func() { _ = c.target.oz.cleanup() }()
	if !c.reach(ctx) {
		c.skip(calls...)
		return
	}
	if c.target.oz.Credentials != nil && !c.step(ctx, "log-in", c.logIn) {
		c.skip(calls[1:]...)
		return
	}
	c.step(ctx, "session token", c.sessionToken)
	c.step(ctx, "empty capsule", func(ctx context.Context) (string, error) { return c.refusedCapsule(ctx, nil, 13) })
	garbage := make([]byte, 1000)
	_, _ = rand.Read(garbage) // never fails
	c.step(ctx, "garbage capsule", func(ctx context.Context) (string, error) { return c.refusedCapsule(ctx, garbage, 14) })
	if c.capsule != nil {
		c.step(ctx, "capsule", c.realCapsule)
	}
}

// configure provisions the way to Oz.
func (c *checker) configure(context.Context) (string, error) {
	if err := c.target.oz.provision(c.caddy); err != nil {
		return "", advise(err, "Mend the configuration; placeholders such as {env.NAME} need the environment that Caddy runs in.")
	}
	c.link = c.target.oz.link
	return "loads", nil
}

// reach looks at name, connection and certificate, as far as the transport is
// one that can be looked at.
func (c *checker) reach(ctx context.Context) bool {
	proxy := c.target.oz.ReverseProxy
	transport, ok := proxy.Transport.(*ozTransport).next.(*reverseproxy.HTTPTransport)
	if !ok || len(proxy.Upstreams) == 0 {
		return true // the calls to come will tell
	}
	address, err := caddy.ParseNetworkAddress(proxy.Upstreams[0].Dial)
	if err != nil || address.IsUnixNetwork() || proxied(transport, address) {
		return true
	}
	if net.ParseIP(address.Host) == nil && !c.step(ctx, "name", func(ctx context.Context) (string, error) {
		return resolve(ctx, address.Host)
	}) {
		c.skip("connection")
		return false
	}
	if !c.step(ctx, "connection", func(ctx context.Context) (string, error) { return connect(ctx, address) }) {
		return false
	}
	if !transport.TLSEnabled() {
		return true
	}
	return c.step(ctx, "TLS", func(ctx context.Context) (string, error) { return shakeHands(ctx, address, transport) })
}

// proxied reports whether the operator has the connection go through a proxy.
func proxied(transport *reverseproxy.HTTPTransport, address caddy.NetworkAddress) bool {
	if transport.Transport.Proxy == nil {
		return false
	}
	req := &http.Request{URL: &url.URL{Scheme: "http", Host: address.JoinHostPort(0)}}
	transport.SetScheme(req)
	proxy, err := transport.Transport.Proxy(req)
	return err != nil || proxy != nil
}

func resolve(ctx context.Context, host string) (string, error) {
	addresses, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return "", advise(err, "Check the host name and this machine's DNS.")
	}
	return strings.Join(addresses, ", "), nil
}

func connect(ctx context.Context, address caddy.NetworkAddress) (string, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address.JoinHostPort(0))
	if err != nil {
		return "", advise(err, "Oz does not listen there, or a firewall is in between. Its container listens on port 8080.")
	}
	defer conn.Close()
	return conn.RemoteAddr().String(), nil
}

func shakeHands(ctx context.Context, address caddy.NetworkAddress, transport *reverseproxy.HTTPTransport) (string, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if transport.Transport.TLSClientConfig != nil {
		config = transport.Transport.TLSClientConfig.Clone()
	}
	if config.ServerName == "" {
		config.ServerName = address.Host
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address.JoinHostPort(0))
	if err != nil {
		return "", advise(err, "Check that this is Oz's TLS port, and that its certificate is for %s and from an authority that is trusted here: transport http { tls_trust_pool … }.", config.ServerName)
	}
	defer conn.Close()
	s := conn.(*tls.Conn).ConnectionState()
	if len(s.PeerCertificates) == 0 {
		return "", errors.New("there is no certificate")
	}
	leaf := s.PeerCertificates[0]
	left := time.Until(leaf.NotAfter)
	about := fmt.Sprintf("%s, certificate of %s, good for %d days", tls.VersionName(s.Version), leaf.Subject.CommonName, int(left.Hours()/24))
	if left < certificateMargin {
		return "", advise(errors.New(about), "Renew Oz's certificate.")
	}
	return about, nil
}

// logIn gets an access token.
func (c *checker) logIn(ctx context.Context) (string, error) {
	s, failure := c.link.account.acquire(ctx, c.link)
	if failure != nil {
		return "", failure.advised()
	}
	c.link.account.release(c.link, s, new(call))
	return fmt.Sprintf("access token for %s", s.grant.Life.Round(time.Second)), nil
}

// sessionToken asks for a session token, and looks at it if it is a JWT.
func (c *checker) sessionToken(ctx context.Context) (string, error) {
	var token string
	t := &call{
		method: http.MethodGet, path: oz.SessionTokenPath,
		header: http.Header{"Content-Type": {"application/json"}},
	}
	t.read = func(res *http.Response) (err error) {
		token, err = t.readSessionToken(res)
		return err
	}
	c.link.authorized(ctx, nil, t)
	if t.fault != nil {
		return "", t.fault.advised()
	}
	return aboutToken(token), nil
}

// aboutToken says what can be seen of a session token. Nothing is verified:
// that is Oz's own business.
func aboutToken(token string) string {
	parts := strings.Split(token, ".")
	var header struct {
		Alg string `json:"alg"`
	}
	var claims struct {
		IssuedAt float64 `json:"iat"`
		Expires  float64 `json:"exp"`
	}
	if len(parts) != 3 || decodePart(parts[0], &header) != nil || decodePart(parts[1], &claims) != nil {
		return fmt.Sprintf("opaque, %d characters", len(token))
	}
	if claims.Expires == 0 {
		return fmt.Sprintf("JWT, %s, no expiry", header.Alg)
	}
	issued := claims.IssuedAt
	if issued == 0 {
		issued = float64(time.Now().Unix())
	}
	return fmt.Sprintf("JWT, %s, good for %d s", header.Alg, int64(claims.Expires-issued))
}

func decodePart(part string, v any) error {
	text, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

// refusedCapsule sends what Oz has to refuse with the code.
func (c *checker) refusedCapsule(ctx context.Context, capsule []byte, code int) (string, error) {
	v, a, err := c.send(ctx, capsule)
	if err != nil {
		return "", err
	}
	if v.Reason != oz.Container || v.Error.Code != code {
		return "", advise(fmt.Errorf("%s, want 400 with error_code %d", aboutAnswer(a, v), code),
			"Is this Oz API Instant 6.6.1 or newer, with %s behind the base path, and no proxy in between that answers by itself?", oz.FoldersPath)
	}
	return fmt.Sprintf("400, error_code %d, as it should be", code), nil
}

func aboutAnswer(a answer, v oz.Verdict) string {
	if v.Error != nil {
		return fmt.Sprintf("oz answered %d, error_code %d", a.status, v.Error.Code)
	}
	return fmt.Sprintf("oz answered %d", a.status)
}

// realCapsule sends the capsule of the --capsule flag.
func (c *checker) realCapsule(ctx context.Context) (string, error) {
	v, a, err := c.send(ctx, c.capsule)
	if err != nil {
		return "", err
	}
	about := fmt.Sprintf("%s of %s: %s, answer of %s, %s of it best shot", aboutAnswer(a, v),
		humanize.IBytes(uint64(len(c.capsule))), outcomeWords(v), humanize.IBytes(uint64(a.bytes)), humanize.IBytes(uint64(a.cut)))
	if v.Decision == oz.Invalid || v.Decision == oz.Unavailable {
		return "", advise(errors.New(about), "%s", adviceOf(v.Reason))
	}
	return about, nil
}

func outcomeWords(v oz.Verdict) string {
	if v.Reason == "" {
		return string(v.Decision)
	}
	return string(v.Decision) + " (" + string(v.Reason) + ")"
}

// send posts a capsule and judges the answer as the block would, but for what
// it requires of a user's request.
func (c *checker) send(ctx context.Context, capsule []byte) (v oz.Verdict, a answer, err error) {
	t := &call{
		method: http.MethodPost, path: oz.FoldersPath,
		header: http.Header{"Content-Type": {capsuleMediaType}},
		length: int64(len(capsule)),
	}
	if len(capsule) > 0 {
		t.body = io.NopCloser(bytes.NewReader(capsule))
	}
	policy := oz.Policy{}
	if policy.Analyses, err = analysisTypes(c.target.handler.Analyses); err != nil {
		return v, a, err
	}
	t.read = func(res *http.Response) (err error) {
		if a, err = (answerReader{max: c.target.handler.MaxAnswer}).read(res); err != nil {
			return err
		}
		v = policy.Judge(a.status, a.doc, nil)
		t.noteAuth(a.status, v.Error)
		if v.Reason == oz.MalformedAnswer {
			return errNotStrict
		}
		return nil
	}
	c.link.authorized(ctx, nil, t)
	if t.fault != nil {
		return v, a, t.fault.advised()
	}
	return v, a, nil
}

// advised is the fault with what an operator can do about it.
func (f *fault) advised() error { return advise(f, "%s", adviceOf(f.reason)) }

func adviceOf(r oz.Reason) string {
	switch r {
	case oz.Unauthorized:
		return "Set access_token or credentials to what this Oz accepts; a 403 can also be a Host that APP_ALLOWED_HOSTS does not name."
	case oz.Overloaded:
		return "Oz is busy: limit what it gets with capacity, or add instances."
	case oz.TooLargeForOz:
		return "Raise the body limit of Oz or of the proxy in front of it, or lower max_capsule."
	case oz.UnexpectedStatus:
		return "Look at base_path, and into Oz's log. A 400 with a page in HTML can be a Host that APP_ALLOWED_HOSTS does not name: header_up Host <name>."
	case oz.MalformedAnswer:
		return "Something that is not Oz answers, or a proxy in between changes or cuts answers."
	case oz.Unreachable:
		return "Check address, port, TLS and firewalls."
	case oz.ConnectionLost:
		return "Look into Oz's log: it closed the connection without an answer."
	case oz.Timeout:
		return "Look at the load of Oz and of its TFSS: an analysis takes some three seconds."
	case oz.Container:
		return "Make a new capsule with a new session token; for code 14 ask the vendor's support."
	}
	return ""
}
