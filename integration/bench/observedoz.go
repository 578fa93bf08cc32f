package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// serveOzName is the command by which bench runs itself as an instance of Oz: one that can be killed.
const serveOzName = "serve-oz"

// observedOz is an instance of Oz that writes down what it does and when.
type observedOz struct {
	addr  string
	notes string // the file
	opts  sandbox.Options
}

func serveOzCommand() *cobra.Command {
	o := &observedOz{opts: sandbox.Options{KeepReceipts: 1, TokenLife: 24 * time.Hour}}
	cmd := &cobra.Command{
		Use: serveOzName, Short: "Run an instance of Oz, for fleet", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.serve(cmd.Context()) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.addr, "listen", "", "`address`")
	flags.StringVar(&o.notes, "notes", "", "`file` for what it does")
	flags.StringVar(&o.opts.KeysDir, "keys", "", "`folder` with the keys of session tokens")
	flags.DurationVar(&o.opts.AnalysisTime, "analysis", time.Second, "duration of an analysis")
	return cmd
}

// serve runs the instance until ctx ends. It takes as many capsules as come: not to send too many is for the gateways.
func (o *observedOz) serve(ctx context.Context) error {
	oz, err := sandbox.New(o.opts)
	if err != nil {
		return err
	}
	defer oz.Close()
	notes, err := os.OpenFile(o.notes, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer notes.Close()
	server := &http.Server{Addr: o.addr, Handler: &ozNotes{oz: oz, out: notes}, ReadHeaderTimeout: timeLimit}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// ozNotes notes when Oz begins with a capsule, has read it, and is done with it. Each note is written by one call before Oz continues,
// so that it outlives a kill -9. Begin comes after the gateway has taken a slot, and end before Oz's answer lets it give that back:
// what is counted between them is never more than what the gateways hold.
type ozNotes struct {
	oz  http.Handler
	out io.Writer
}

// Kinds of notes.
const (
	noteBegin = "begin"
	noteRead  = "read"
	noteEnd   = "end"
)

func (n *ozNotes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != sandbox.FoldersPath {
		n.oz.ServeHTTP(w, r)
		return
	}
	id := r.Header.Get("X-Request-Id")
	n.note(noteBegin, id)
	answer := &notedAnswer{ResponseWriter: w, end: sync.OnceFunc(func() { n.note(noteEnd, id) })}
	defer answer.end()
	r.Body = &notedBody{ReadCloser: r.Body, read: sync.OnceFunc(func() { n.note(noteRead, id) })}
	n.oz.ServeHTTP(answer, r)
}

// note panics if it cannot write: figures without it would be wrong.
func (n *ozNotes) note(kind, id string) {
	if _, err := fmt.Fprintf(n.out, "%s %d %s\n", kind, monotonic(), id); err != nil {
		panic(err)
	}
}

type notedAnswer struct {
	http.ResponseWriter
	end func()
}

func (a *notedAnswer) WriteHeader(status int) {
	a.end()
	a.ResponseWriter.WriteHeader(status)
}

func (a *notedAnswer) Write(p []byte) (int, error) {
	a.end()
	return a.ResponseWriter.Write(p)
}

func (a *notedAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

type notedBody struct {
	io.ReadCloser
	read func()
}

func (b *notedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.read()
	}
	return n, err
}

// analysis is what an instance of Oz did with one capsule.
type analysis struct {
	id               string
	begin, read, end time.Duration // by the monotonic clock; read is 0 if the capsule was never whole
	cut              bool          // its instance was killed before its answer can have been sent
}

// answerTime is how long an answer may take on its way: one that was ready that short before a kill may be lost.
const answerTime = 50 * time.Millisecond

// readNotes reads what an instance wrote. One that was killed ended its analyses then; 0 if it was not.
func readNotes(file string, killed time.Duration) ([]analysis, error) {
	in, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	all, err := parseNotes(in, killed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(file), err)
	}
	return all, nil
}

func parseNotes(in io.Reader, killed time.Duration) (all []analysis, err error) {
	open := map[string]int{} // index in all
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var kind, id string
		var at int64
		if _, err := fmt.Sscan(lines.Text(), &kind, &at, &id); err != nil {
			return nil, fmt.Errorf("unreadable note %q", lines.Text())
		}
		i, found := open[id]
		switch {
		case kind == noteBegin && !found:
			open[id] = len(all)
			all = append(all, analysis{id: id, begin: time.Duration(at)})
		case kind == noteRead && found:
			all[i].read = time.Duration(at)
		case kind == noteEnd && found:
			all[i].end = time.Duration(at)
			delete(open, id)
		default:
			return nil, fmt.Errorf("note %q follows from nothing", lines.Text())
		}
	}
	if len(open) > 0 && killed == 0 {
		return nil, fmt.Errorf("%d analyses never ended: %s", len(open), strings.Join(idsOf(open), " "))
	}
	for i := range all {
		a := &all[i]
		if _, unfinished := open[a.id]; unfinished && a.end == 0 {
			a.end = max(killed, a.begin)
		}
		a.cut = killed > 0 && a.end > killed-answerTime
	}
	return all, lines.Err()
}

func idsOf(open map[string]int) (ids []string) {
	for id := range open {
		ids = append(ids, id)
	}
	return ids
}
