package integration_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
	"github.com/oz-instant/caddy-oz-instant/integration/deploy/observability"
)

// observabilityFolder is where dashboard and rules are.
func observabilityFolder(t testing.TB) string {
	t.Helper()
	root, err := caddybin.Root()
	check(t, err)
	return filepath.Join(root, "integration", "deploy", "observability")
}

// startPrometheus runs a Prometheus until the test ends, and returns when it has scraped the addresses, one for each job. It has our
// rules.
func startPrometheus(t testing.TB, jobs map[string]string) observability.Prometheus {
	t.Helper()
	path, dir, address := program(t, "prometheus"), t.TempDir(), loopback(freePort(t))
	var config strings.Builder
	fmt.Fprintf(&config, "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [%s]\nscrape_configs:\n", filepath.Join(observabilityFolder(t), "rules.yml"))
	for job, target := range jobs {
		fmt.Fprintf(&config, "  - {job_name: %s, static_configs: [{targets: [%q], labels: {instance: %[1]s-1}}]}\n", job, target)
	}
	file := filepath.Join(dir, "prometheus.yml")
	check(t, os.WriteFile(file, []byte(config.String()), 0o600))

	cmd := exec.Command(path, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	book, ended := newLogBook(), make(chan struct{})
	cmd.Stdout, cmd.Stderr, cmd.Dir = book, book, dir
	dieWithTests(cmd, syscall.SIGKILL)
	check(t, cmd.Start())
	go func() {
		cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
	})
	if len(book.wait(startPatience, 1, ended, having("Server is ready"))) == 0 {
		t.Fatalf("Prometheus did not start:\n%s", book)
	}
	p := observability.Prometheus("http://" + address)
	awaitScrapes(t, p, len(jobs))
	return p
}

// awaitScrapes returns when that many targets were scraped: Prometheus needs five seconds to look at its targets for the first time.
func awaitScrapes(t testing.TB, p observability.Prometheus, targets int) {
	t.Helper()
	for start := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		up, err := p.Query(t.Context(), "up == 1")
		check(t, err)
		if len(up) == targets {
			return
		}
		if time.Since(start) > patience {
			t.Fatalf("Prometheus scrapes %d of %d targets", len(up), targets)
		}
	}
}

// serveTextfile serves a file as node_exporter's textfile collector does, and returns the address.
func serveTextfile(t testing.TB, file string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		http.ServeFile(w, r, file)
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// serveTLS serves a handler over TLS, and returns the address.
func serveTLS(t testing.TB, cert certificate, handler http.Handler) string {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.TLS = cert.serverConfig()
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}
