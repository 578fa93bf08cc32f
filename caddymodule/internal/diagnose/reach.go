package diagnose

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// certificateMargin is how long a certificate must remain valid.
const certificateMargin = 14 * 24 * time.Hour

// reach looks at name, connection and certificate, in so far as the transport
// dials the upstream itself, over TCP. Where it doesn't, the calls tell. Its
// error says why there can be none.
func (c *checker) reach(ctx context.Context) error {
	transport := c.client.HTTPTransport()
	if transport == nil || c.dial == "" || slices.Contains(transport.Versions, "3") {
		return nil
	}
	address, err := caddy.ParseNetworkAddress(caddy.NewReplacer().ReplaceAll(c.dial, ""))
	if err != nil || address.IsUnixNetwork() || proxied(transport, address) {
		return nil
	}
	// A resolver of the transport's own is asked by its dialer.
	if net.ParseIP(address.Host) == nil && transport.Resolver == nil && !c.step(ctx, "name", func(ctx context.Context) (string, error) {
		return resolve(ctx, address.Host)
	}) {
		c.skip("connection", errEarlier)
		return errEarlier
	}
	var conn net.Conn
	if !c.step(ctx, "connection", func(ctx context.Context) (string, error) {
		if conn, err = dial(ctx, transport, address); err != nil {
			return "", failed(err, "Oz doesn't listen there, or a firewall is in between. Its container listens on port 8080.")
		}
		return conn.RemoteAddr().String(), nil
	}) {
		return errEarlier
	}
	defer conn.Close()
	if !transport.TLSEnabled() || transport.ProxyProtocol != "" { // a PROXY header would have to come before the handshake
		return nil
	}
	var secured bool
	c.step(ctx, "TLS", func(ctx context.Context) (detail string, err error) {
		detail, secured, err = c.handshake(ctx, conn, transport.Transport.TLSClientConfig, address.Host)
		return detail, err
	})
	if !secured {
		return errEarlier
	}
	return nil
}

// proxied reports whether the operator has connections go through a proxy.
func proxied(transport *reverseproxy.HTTPTransport, address caddy.NetworkAddress) bool {
	req := &http.Request{URL: &url.URL{Scheme: "http", Host: address.JoinHostPort(0)}}
	transport.SetScheme(req)
	proxy, err := transport.Transport.Proxy(req)
	return err != nil || proxy != nil
}

func resolve(ctx context.Context, host string) (string, error) {
	addresses, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return "", failed(err, "Check the host name and this machine's DNS.")
	}
	return strings.Join(addresses, ", "), nil
}

// dial connects as the transport does, with its resolver and its own address.
func dial(ctx context.Context, transport *reverseproxy.HTTPTransport, address caddy.NetworkAddress) (net.Conn, error) {
	if transport.ProxyProtocol != "" { // which needs a request
		return new(net.Dialer).DialContext(ctx, "tcp", address.JoinHostPort(0))
	}
	return transport.Transport.DialContext(ctx, "tcp", address.JoinHostPort(0))
}

// handshake begins TLS. One whose certificate ends soon is secured, and is an
// error nevertheless.
func (c *checker) handshake(ctx context.Context, raw net.Conn, given *tls.Config, host string) (detail string, secured bool, err error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if given != nil {
		config = given.Clone()
	}
	config.ServerName = cmp.Or(caddy.NewReplacer().ReplaceAll(config.ServerName, ""), host)
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		if refused, ok := errors.AsType[*tls.CertificateVerificationError](err); ok { // such as one that has ended
			c.certificateEnds = refused.UnverifiedCertificates[0].NotAfter
		}
		return "", false, failed(err, fmt.Sprintf("Check that this is Oz's TLS port, and that its certificate is for %s and from an authority that is trusted here: transport http { tls_trust_pool … }.", config.ServerName))
	}
	c.certificateEnds = conn.ConnectionState().PeerCertificates[0].NotAfter
	detail, err = aboutCertificate(conn.ConnectionState())
	if err == nil && config.InsecureSkipVerify {
		detail += ", not verified (tls_insecure_skip_verify)"
	}
	return detail, true, err
}

func aboutCertificate(s tls.ConnectionState) (string, error) {
	leaf := s.PeerCertificates[0]
	left := time.Until(leaf.NotAfter)
	names := slices.Concat([]string{leaf.Subject.CommonName}, leaf.DNSNames, []string{"no name"}) // many certificates have no common name
	about := fmt.Sprintf("%s, certificate of %s, valid for %d days", tls.VersionName(s.Version), cmp.Or(names...), int(left.Hours()/24))
	if left < certificateMargin {
		return "", failed(errors.New(about), "Renew Oz's certificate.")
	}
	return about, nil
}
