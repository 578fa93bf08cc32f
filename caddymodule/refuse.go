package caddymodule

import (
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// refuse ends a request with p. The error goes to the site's handle_errors
// routes where one of them wants it; elsewhere the problem document is the
// answer, since Caddy's own would have no body at all.
//
// Nobody waits for the rest of a refused body: on HTTP/1 the server would read
// it first, or, with Expect: 100-continue, wait for it in silence; Connection:
// close makes it answer at once. HTTP/2 and HTTP/3 end the stream by themselves.
func refuse(w http.ResponseWriter, r *http.Request, p *problem, bodyUnread bool) error {
	h := w.Header()
	maps.Copy(h, p.header)
	h.Set("Cache-Control", "no-store")
	closeAfter(w, r, bodyUnread || p.hangUp)

	if p.Status == statusClientGone {
		w.WriteHeader(p.Status) // for the access log; nobody reads it
		return nil
	}
	err := caddyhttp.Error(p.Status, p)
	if errorRouteMatches(r, err) {
		return err
	}
	doc := p.document()
	h.Set("Content-Type", problemMediaType)
	h.Set("Content-Length", strconv.Itoa(len(doc)))
	w.WriteHeader(p.Status)
	_, _ = w.Write(doc) // a client that left is no news
	drain(w, r, bodyUnread)
	return nil
}

// drainTimeHTTP3 is how long the rest of a body is read behind an answer over
// HTTP/3.
const drainTimeHTTP3 = 5 * time.Second

// drain reads what is left of a body behind an answer over HTTP/3, where the
// server would otherwise ask the client to stop sending. In one case of five
// Chromium then never shows the answer to the page.
func drain(w http.ResponseWriter, r *http.Request, bodyUnread bool) {
	if !bodyUnread || r.ProtoMajor != 3 {
		return
	}
	rc := http.NewResponseController(w)
	_ = rc.Flush()
	_ = rc.SetReadDeadline(time.Now().Add(drainTimeHTTP3))
	_, _ = io.Copy(io.Discard, r.Body)
}

// drainTime is how long the server waits, behind an answer, for what is left of
// a small body.
const drainTime = time.Second

// closeAfter ends an HTTP/1 connection behind the answer if there is more of
// the body on it. It ends gently: to close a socket with bytes unread resets
// it, and a reset overtakes the answer that a client has not read yet. So
// net/http has to half-close first and wait a little, as it does by itself
// where it knows of the unread body; here Caddy's wrapper hides that from it.
// Before that net/http reads on if not much is left, which may never come: with
// Expect: 100-continue the client keeps it.
func closeAfter(w http.ResponseWriter, r *http.Request, bodyUnread bool) {
	if !bodyUnread || r.ProtoMajor != 1 {
		return
	}
	w.Header().Set("Connection", "close")
	// A MaxBytesReader that meets its limit is the one way to ask for it.
	over := http.MaxBytesReader(innermost(w), io.NopCloser(strings.NewReader("x")), 0)
	_, _ = over.Read(make([]byte, 1))
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(drainTime))
}

// innermost is the server's own ResponseWriter.
func innermost(w http.ResponseWriter) http.ResponseWriter {
	for {
		wrapper, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return w
		}
		w = wrapper.Unwrap()
	}
}

// errorRouteMatches reports whether one of the site's handle_errors routes
// would handle err. server.Errors belongs to every site of the listener, so
// that it is set says nothing about this site.
func errorRouteMatches(r *http.Request, err error) bool {
	server, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok || server == nil || server.Errors == nil {
		return false
	}
	return anyRouteHandles(server.Errors.Routes, server.Errors.WithError(asReceived(r), err))
}

// asReceived is r with the method and URL that error routes see: the server
// puts them back before it runs them.
func asReceived(r *http.Request) *http.Request {
	orig, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
	if !ok {
		return r
	}
	received := *r
	received.Method, received.RequestURI = orig.Method, orig.RequestURI
	url := *orig.URL
	received.URL = &url
	return &received
}

func anyRouteHandles(routes caddyhttp.RouteList, r *http.Request) bool {
	for _, route := range routes {
		if matches, err := route.MatcherSets.AnyMatchWithError(r); err != nil || !matches {
			continue
		}
		for _, handler := range route.Handlers {
			sub, isSubroute := handler.(*caddyhttp.Subroute)
			if !isSubroute || anyRouteHandles(sub.Routes, r) {
				return true
			}
		}
	}
	return false
}
