package check

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	core "k8s.io/api/core/v1"

	"golang.org/x/sys/unix"
)

const (
	user = 65532

	// bundleVariable tells this program that it runs in namespaces of its own, and with what.
	bundleVariable = "OZ_BUNDLE"
)

// image is what buildah made.
type image struct {
	Root   string // its files
	Config imageConfig
}

type imageConfig struct {
	User       string
	Entrypoint []string
	Cmd        []string
	Env        []string
}

// buildImage builds the Dockerfile with the ready binary, as it can be done without a network.
func buildImage(t *testing.T, dockerfile string) *image {
	t.Helper()
	dir := t.TempDir()
	for name, from := range map[string]string{"Dockerfile": dockerfile, "caddy": caddy(t)} {
		content, err := os.ReadFile(from)
		check(t, err)
		check(t, os.WriteFile(filepath.Join(dir, name), content, 0o755))
	}
	buildah := func(args ...string) []byte {
		t.Helper()
		args = append([]string{"--storage-driver", "vfs", "--root", filepath.Join(dir, "storage"), "--runroot", filepath.Join(dir, "run")}, args...)
		var out, log bytes.Buffer
		cmd := exec.Command("buildah", args...)
		cmd.Stdout, cmd.Stderr = &out, &log
		if err := cmd.Run(); err != nil {
			t.Fatalf("buildah %s: %v\n%s%s", strings.Join(args, " "), err, &out, &log)
		}
		return bytes.TrimSpace(out.Bytes())
	}
	buildah("bud", "--isolation", "chroot", "--pull-never", "--build-arg", "BINARY=ready", "--timestamp", "0", "--tag", "check", dir)
	var inspected struct {
		OCIv1 struct{ Config imageConfig }
	}
	check(t, json.Unmarshal(buildah("inspect", "--type", "image", "check"), &inspected))
	container := string(buildah("from", "--pull-never", "check"))
	t.Cleanup(func() { buildah("rm", container) })
	return &image{string(buildah("mount", container)), inspected.OCIv1.Config}
}

// examine returns what is wrong with an image by its looks.
func (i *image) examine() (wrong complaints) {
	wrong.unless(i.Config.User == fmt.Sprintf("%d:%[1]d", user), "it runs as %q", i.Config.User)
	wrong.unless(slices.Equal(i.Config.Entrypoint, []string{"/usr/bin/caddy"}), "it runs %q", i.Config.Entrypoint)
	var files []string
	err := fs.WalkDir(os.DirFS(i.Root), ".", func(name string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			files = append(files, name)
		}
		return err
	})
	wrong.unless(err == nil && slices.Equal(files, []string{"usr/bin/caddy"}), "it holds %q, %v", files, err)
	return wrong
}

// bundle is what a container runtime would know of one container.
type bundle struct {
	Root   string
	Layer  string // where to mount what the container has of its own
	Args   []string
	Env    []string
	Mounts []mount
	Client string // ozsandbox, for capsules
	Probes []string
	Ready  string // one of them
	Scrape string
	Series []string
	Status int    // of a capsule's answer
	Redis  string // folder with its certificate; empty: there is none
}

type mount struct {
	Path  string
	Files map[string]string // nil: an empty folder that can be written to
}

// bundle makes one of an image and what the manifests say of the gateway.
func (i *image) bundle(m *manifests) *bundle {
	b := &bundle{Root: i.Root, Args: slices.Concat(i.Config.Entrypoint, m.gateway().Args), Env: i.Config.Env}
	env := m.environment()
	env["OZ_URL"], env["APP_URL"] = "http://127.0.0.1:9000", "http://127.0.0.1:3000"
	env["REDIS_ADDRESS"] = "127.0.0.1:1"
	for _, name := range slices.Sorted(maps.Keys(env)) {
		b.Env = append(b.Env, name+"="+env[name])
	}
	volumes := map[string]core.Volume{}
	for _, v := range m.pod().Volumes {
		volumes[v.Name] = v
	}
	for _, at := range m.gateway().VolumeMounts {
		to := mount{Path: at.MountPath}
		switch v := volumes[at.Name]; {
		case v.ConfigMap != nil:
			to.Files = m.config.Data
		case v.Secret != nil:
			to.Files = map[string]string{"email": "gateway@example.com\n", "password": "secret\n", "redis_password": "secret\n"}
		}
		b.Mounts = append(b.Mounts, to)
	}
	for _, probe := range m.probes() {
		number, _ := m.port(probe.Port)
		b.Probes = append(b.Probes, fmt.Sprintf("http://127.0.0.1:%d%s", number, probe.Path))
		if probe.Path == readyPath {
			b.Ready = b.Probes[len(b.Probes)-1]
		}
	}
	b.Scrape = "http://127.0.0.1:" + m.deployment.Spec.Template.Annotations["prometheus.io/port"] + "/metrics"
	if m.scaler != nil {
		for _, metric := range m.scaler.Spec.Metrics {
			if metric.Pods != nil {
				b.Series = append(b.Series, metric.Pods.Metric.Name)
			}
		}
	}
	return b
}

// addRedis has the gateway use a Redis by TLS, whose certificate it is told to trust.
func (b *bundle) addRedis(t *testing.T) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	check(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	b.Redis = t.TempDir()
	trusted := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
	check(t, os.WriteFile(filepath.Join(b.Redis, "cert.pem"), trusted, 0o600))
	check(t, os.WriteFile(filepath.Join(b.Redis, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	b.Mounts = append(b.Mounts, mount{"/run/ca", map[string]string{"ca.pem": string(trusted)}})
	b.Env = append(b.Env, "SSL_CERT_FILE=/run/ca/ca.pem")
	for i, variable := range b.Env {
		if strings.HasPrefix(variable, "REDIS_ADDRESS=") {
			b.Env[i] = "REDIS_ADDRESS=127.0.0.1:6379"
		}
	}
}

// startRedis runs it, with the account that the Caddyfile has.
func (b *bundle) startRedis(t *testing.T) {
	t.Helper()
	certificate := filepath.Join(b.Redis, "cert.pem")
	redis := exec.Command("redis-server", "--bind", "127.0.0.1", "--port", "0", "--tls-port", "6379", "--tls-auth-clients", "no",
		"--tls-cert-file", certificate, "--tls-ca-cert-file", certificate, "--tls-key-file", filepath.Join(b.Redis, "key.pem"),
		"--save", "", "--user", "oz", "on", ">secret",
		// As the docs have it, for claims and slots.
		"~oz_instant:replay:*", "~oz_instant:slots:*", "&oz_instant:slots:*", "+set", "+get", "+del", "+eval", "+evalsha", "+time", "+pexpire",
		"+zadd", "+zrem", "+zcard", "+zcount", "+zscore", "+zrange", "+zrangebyscore", "+zremrangebyscore", "+publish", "+subscribe", "+ping")
	redis.Stdout, redis.Stderr, redis.Dir = os.Stderr, os.Stderr, b.Redis
	check(t, redis.Start()) // it ends with its namespace
	awaitListener(t, "127.0.0.1:6379")
}

// run has this program start in namespaces of its own, where loopback is all of the network, and run the bundle there.
func (b *bundle) run(t *testing.T) (string, error) {
	t.Helper()
	b.Layer = t.TempDir()
	text, err := json.Marshal(b)
	check(t, err)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestInside$", "-test.v")
	cmd.Env = append(os.Environ(), bundleVariable+"="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// sandbox builds the stand-in for Oz.
func sandbox(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ozsandbox")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", file, "./integration/cmd/ozsandbox")
	cmd.Dir = filepath.Join("..", "..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return file
}

const dockerfile = "../container/Dockerfile"

// TestImage promises an image of one file, which decides capsules as a user without rights, with a root that is read-only, no
// network but loopback, and all that the manifests say; and that probes and metrics are where those look for them.
func TestImage(t *testing.T) {
	i := buildImage(t, dockerfile)
	for _, wrong := range i.examine() {
		t.Error(wrong)
	}
	out, err := exec.Command(filepath.Join(i.Root, "usr/bin/caddy"), "build-info").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "golang.org/x/crypto/x509roots/fallback") {
		t.Errorf("it has no certificate authorities: %v\n%s", err, out)
	}
	client := sandbox(t)
	for _, folder := range folders {
		t.Run(folder, func(t *testing.T) {
			t.Parallel()
			m, err := build(filepath.Join("..", "kubernetes", folder))
			check(t, err)
			b := i.bundle(m)
			b.Client, b.Status = client, 200
			if folder == "fleet" {
				b.addRedis(t)
			}
			if out, err := b.run(t); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	t.Run("broken", func(t *testing.T) { testBroken(t, i, client) })
}

// testBroken promises that running the image notices what is wrong.
func testBroken(t *testing.T, i *image, client string) {
	fleet, err := build("../kubernetes/fleet")
	check(t, err)
	for name, row := range map[string]struct {
		change  func(*bundle)
		notices string
	}{
		"no folder for the admin socket": {func(b *bundle) {
			b.Mounts = slices.DeleteFunc(b.Mounts, func(m mount) bool { return m.Path == "/run/caddy" })
		}, "admin.sock"},
		"no secret": {func(b *bundle) {
			b.Mounts = slices.DeleteFunc(b.Mounts, func(m mount) bool { return m.Path == "/run/secrets/oz_instant" })
		}, "oz_instant/"},
		"another account at Redis": {func(b *bundle) {
			b.addRedis(t)
			b.Status = 200
			for _, m := range b.Mounts {
				if _, has := m.Files["redis_password"]; has {
					m.Files["redis_password"] = "another"
				}
			}
		}, "a capsule got 503"},
		"another probe":   {func(b *bundle) { b.Probes[0] += "z" }, "readyz: 404 "},
		"another metric":  {func(b *bundle) { b.Series[0] = "caddy_oz_instant_waiting" }, "no metric caddy_oz_instant_waiting"},
		"another program": {func(b *bundle) { b.Args[0] = "/bin/caddy" }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := i.bundle(fleet)
			b.Client, b.Status = client, 503
			row.change(b)
			if out, err := b.run(t); err == nil || !strings.Contains(out, row.notices) {
				t.Errorf("%q was not noticed: %v\n%s", row.notices, err, out)
			}
		})
	}
	broken := filepath.Join(t.TempDir(), "Dockerfile")
	text, err := os.ReadFile(dockerfile)
	check(t, err)
	check(t, os.WriteFile(broken, []byte(strings.NewReplacer("USER 65532:65532\n", "", "COPY --from=binary /caddy", "COPY --from=binary /caddy /copy\nCOPY --from=binary /caddy").Replace(string(text))), 0o600))
	if wrong := strings.Join(buildImage(t, broken).examine(), "\n"); !strings.Contains(wrong, "runs as") || !strings.Contains(wrong, "copy") {
		t.Errorf("an image that runs as root and holds more was not noticed: %s", wrong)
	}
}

// TestInside is no test of its own: it is what runs in the namespaces.
func TestInside(t *testing.T) {
	text := os.Getenv(bundleVariable)
	if text == "" {
		return // TestImage starts it
	}
	var b bundle
	check(t, json.Unmarshal([]byte(text), &b))
	raiseLoopback(t)
	b.mount(t)
	seen := make(chan string, 10) // what the app got
	app, err := net.Listen("tcp", "127.0.0.1:3000")
	check(t, err)
	go http.Serve(app, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			seen <- r.Header.Get("X-Oz-Decision")
		}
	}))
	oz := exec.Command(b.Client, "run", "--account", "gateway@example.com:secret", "--app", "", "--quiet")
	check(t, oz.Start())
	defer oz.Process.Kill()
	awaitListener(t, "127.0.0.1:9000")
	if b.Redis != "" {
		b.startRedis(t)
	}

	var log bytes.Buffer
	gateway := b.start(t, &log)
	ended := make(chan error, 1)
	go func() { ended <- gateway.Wait() }()
	defer func() {
		if t.Failed() {
			gateway.Process.Kill()
			t.Logf("Caddy's log:\n%s", &log)
		}
	}()
	b.awaitReady(t, ended)
	b.examineProcess(t, gateway.Process.Pid)
	for _, probe := range b.Probes {
		if status, body := get(t, probe); status != 200 {
			t.Errorf("%s: %d %s", probe, status, body)
		}
	}
	_, metrics := get(t, b.Scrape)
	for _, series := range b.Series {
		if !strings.Contains(metrics, "\n"+series+" ") {
			t.Errorf("there is no metric %s", series)
		}
	}
	b.decide(t, seen)
	if _, metrics := get(t, b.Scrape); b.Redis != "" && !strings.Contains(metrics, "\ncaddy_oz_instant_slots_shared 1\n") {
		t.Error("slots aren't shared")
	}

	check(t, gateway.Process.Signal(syscall.SIGTERM))
	for status := 200; status != 503; status, _ = get(t, b.Ready) {
		time.Sleep(10 * time.Millisecond) // nothing tells when it has heard of it
	}
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
}

// decide has a capsule decided.
func (b *bundle) decide(t *testing.T, seen <-chan string) {
	t.Helper()
	status, answer := get(t, "http://127.0.0.1:8080/session_token")
	var token struct {
		Text string `json:"session_token"`
	}
	if err := json.Unmarshal([]byte(answer), &token); err != nil || status != 200 {
		t.Fatalf("asking for a session token: %d %s", status, answer)
	}
	out, err := exec.Command(b.Client, "capsule", "--token", token.Text, "--outcome", "SUCCESS", "-o", "-").Output()
	check(t, err)
	resp, err := http.Post("http://127.0.0.1:8080/verify", "application/octet-stream", bytes.NewReader(out))
	check(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	check(t, err)
	if resp.StatusCode != b.Status {
		t.Fatalf("a capsule got %d %s", resp.StatusCode, body)
	}
	if b.Status != 200 {
		return
	}
	if decision := <-seen; decision != "SUCCESS" {
		t.Errorf("the app was told %q", decision)
	}
}

// awaitReady returns when the startup probe succeeds.
func (b *bundle) awaitReady(t *testing.T, ended <-chan error) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		select {
		case err := <-ended:
			t.Fatalf("it ended with %v", err)
		case <-time.After(50 * time.Millisecond): // as the kubelet
		}
		if resp, err := http.Get(b.Ready); err == nil {
			if resp.Body.Close(); resp.StatusCode == 200 {
				return
			}
		}
	}
	t.Fatal("it did not become ready")
}

func awaitListener(t *testing.T, address string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	resp, err := http.Get(url)
	check(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	check(t, err)
	return resp.StatusCode, string(text)
}

// raiseLoopback brings up the only network that there is.
func raiseLoopback(t *testing.T) {
	t.Helper()
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	check(t, err)
	defer unix.Close(socket)
	loopback, err := unix.NewIfreq("lo")
	check(t, err)
	loopback.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	check(t, unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, loopback))
}

// mount puts the volumes into the image's files, and makes all else read-only.
func (b *bundle) mount(t *testing.T) {
	t.Helper()
	check(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	over := b.Layer // as container runtimes do it, above the image
	check(t, unix.Mount("layer", over, "tmpfs", 0, ""))
	for _, dir := range []string{"upper", "work", "root"} {
		check(t, os.Mkdir(filepath.Join(over, dir), 0o755))
	}
	lower := b.Root
	b.Root = filepath.Join(over, "root")
	check(t, unix.Mount("overlay", b.Root, "overlay", 0, "lowerdir="+lower+",upperdir="+over+"/upper,workdir="+over+"/work"))
	proc := filepath.Join(b.Root, "proc")
	check(t, os.Mkdir(proc, 0o755))
	check(t, unix.Mount("proc", proc, "proc", 0, ""))
	for _, m := range b.Mounts {
		to := filepath.Join(b.Root, m.Path)
		check(t, os.MkdirAll(to, 0o755))
		check(t, unix.Mount("volume", to, "tmpfs", 0, "mode=0777"))
		for name, content := range m.Files {
			file := filepath.Join(to, name)
			check(t, os.WriteFile(file, []byte(content), 0o440))
			check(t, os.Chown(file, 0, user))
		}
		if m.Files != nil {
			check(t, unix.Mount("", to, "", unix.MS_REMOUNT|unix.MS_RDONLY, "mode=0555"))
		}
	}
	check(t, unix.Mount("", b.Root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
}

// start runs the container's program: in its root, as its user, without a capability or a way to get one.
func (b *bundle) start(t *testing.T, log io.Writer) *exec.Cmd {
	t.Helper()
	runtime.LockOSThread() // what is given up here holds for what this thread starts
	check(t, unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	for capability := range uintptr(unix.CAP_LAST_CAP + 1) {
		check(t, unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0))
	}
	cmd := &exec.Cmd{Path: b.Args[0], Args: b.Args, Env: b.Env, Dir: "/", Stdout: log, Stderr: log}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot:     b.Root,
		Credential: &syscall.Credential{Uid: user, Gid: user},
		Pdeathsig:  syscall.SIGKILL,
	}
	check(t, cmd.Start())
	return cmd
}

// examineProcess fails the test unless the program really runs as start has it.
func (b *bundle) examineProcess(t *testing.T, pid int) {
	t.Helper()
	status, err := os.ReadFile(filepath.Join(b.Root, "proc", strconv.Itoa(pid), "status"))
	check(t, err)
	for _, want := range []string{
		"Uid:\t65532\t65532\t65532\t65532\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "CapBnd:\t0000000000000000\n", "NoNewPrivs:\t1\n",
	} {
		if !strings.Contains(string(status), want) {
			t.Errorf("it has not %q but\n%s", want, status)
		}
	}
	if err := os.WriteFile(filepath.Join(b.Root, "written"), nil, 0o600); err == nil {
		t.Error("its root can be written to")
	}
}
