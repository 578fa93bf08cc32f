package check

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	unitFile = "oz-instant.service"

	// exposure is the most that systemd-analyze security may find, in tenths. It was 16 with systemd 252.
	exposure = "20"
)

// examineUnit returns what is wrong with the unit in a folder, and with the Caddyfile beside it.
func examineUnit(t *testing.T, folder string) (wrong complaints) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder, unitFile))
	check(t, err)
	// systemd looks for the program that is started.
	file := filepath.Join(t.TempDir(), unitFile)
	check(t, os.WriteFile(file, bytes.ReplaceAll(text, []byte("/usr/bin/caddy"), []byte(caddy(t))), 0o600))
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", file).CombinedOutput()
	wrong.unless(err == nil && len(bytes.TrimSpace(out)) == 0, "systemd-analyze verify: %v %s", err, out) // an unknown key is a warning only
	out, err = exec.Command("systemd-analyze", "security", "--no-pager", "--offline=yes", "--threshold="+exposure, file).CombinedOutput()
	wrong.unless(err == nil, "systemd-analyze security: %v %s", err, out)

	unit := settings(string(text))
	config, err := adaptFile(t, filepath.Join(folder, "Caddyfile"), unitEnvironment)
	if err != nil {
		wrong.unless(false, "the Caddyfile: %v", err)
		return wrong
	}
	config.examineShutdown(&wrong)
	stop, err := time.ParseDuration(unit["TimeoutStopSec"])
	wrong.unless(err == nil && stop >= config.ending()+spare, "TimeoutStopSec is %v, and Caddy needs %v and %v to spare", stop, config.ending(), spare)
	wrong.unless(unit["DynamicUser"] == "yes", "Caddy runs as root")
	wrong.unless(unit["Type"] == "notify", "systemd isn't told when Caddy serves")
	wrong.unless(!strings.Contains(unit["ExecStart"], "--environ"), "the environment is logged")
	return wrong
}

// unitEnvironment is what the unit and its EnvironmentFile say, in other words.
var unitEnvironment = map[string]string{
	"SITE": "app.example.com", "OZ_URL": "https://oz.internal", "APP_URL": "http://127.0.0.1:3000",
	"OZ_EMAIL_FILE": "/run/secrets/oz_instant/email", "OZ_PASSWORD_FILE": "/run/secrets/oz_instant/password",
}

// settings are the lines of a unit; of those with one name, the last.
func settings(text string) map[string]string {
	unit := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, found := strings.Cut(strings.TrimSpace(line), "="); found && !strings.HasPrefix(name, "#") {
			unit[name] = value
		}
	}
	return unit
}

func adaptFile(t *testing.T, file string, env map[string]string) (*caddyConfig, error) {
	t.Helper()
	text, err := os.ReadFile(file)
	check(t, err)
	return adapt(t, string(text), env)
}

var systemd = filepath.Join("..", "systemd")

// TestUnit promises that systemd reads each line of the unit, that it leaves a service little that it could do harm with, and that it
// waits for capsules in progress.
func TestUnit(t *testing.T) {
	for _, wrong := range examineUnit(t, systemd) {
		t.Error(wrong)
	}
}

// TestUnitBroken promises that the checks notice what they are for.
func TestUnitBroken(t *testing.T) {
	for _, row := range []struct{ file, old, new, notices string }{
		{unitFile, "NoNewPrivileges", "NoNewPriviledges", "Unknown key"},
		{unitFile, "Type=notify", "Type=notified", "verify"},
		{unitFile, "Type=notify", "Type=exec", "isn't told"},
		{unitFile, "RestrictNamespaces=yes\n", "", "security"},
		{unitFile, "SystemCallFilter=", "#", "security"},
		{unitFile, "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\n", "", "security"},
		{unitFile, "DynamicUser=yes\n", "", "runs as root"},
		{unitFile, "TimeoutStopSec=120s", "TimeoutStopSec=90s", "TimeoutStopSec is 1m30s"},
		{unitFile, "caddy run", "caddy run --environ", "is logged"},
		{"Caddyfile", "grace_period 110s", "grace_period 300s", "TimeoutStopSec is 2m0s"},
		{"Caddyfile", "upload_timeout 60s", "upload_timeout 120s", "grace_period is 1m50s"},
	} {
		t.Run(row.file+" "+strings.TrimSpace(row.old), func(t *testing.T) {
			folder := t.TempDir()
			copyFolder(t, systemd, folder)
			replace(t, filepath.Join(folder, row.file), row.old, row.new)
			if wrong := strings.Join(examineUnit(t, folder), "\n"); !strings.Contains(wrong, row.notices) {
				t.Errorf("%q was not noticed, but %q", row.notices, wrong)
			}
		})
	}
}

// TestNotify promises that Caddy tells systemd when it serves, reloads and ends, as Type=notify has it, with the Caddyfile and the
// environment of the unit, and that it writes nowhere but where the unit lets it.
func TestNotify(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "notify")
	messages, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	check(t, err)
	defer messages.Close()
	check(t, messages.SetReadDeadline(time.Now().Add(30*time.Second)))
	site := "http://" + freeAddress(t)
	for _, name := range []string{"state", "run", "credentials"} {
		check(t, os.Mkdir(filepath.Join(dir, name), 0o700))
	}
	for _, name := range []string{"oz_email", "oz_password"} {
		check(t, os.WriteFile(filepath.Join(dir, "credentials", name), []byte("secret\n"), 0o600))
	}
	text, err := os.ReadFile(filepath.Join(systemd, unitFile))
	check(t, err)
	specifiers := strings.NewReplacer("%S/oz-instant", dir+"/state", "%t/oz-instant", dir+"/run", "%d", dir+"/credentials")

	cmd := exec.Command(caddy(t), "run", "--config", filepath.Join(systemd, "Caddyfile"))
	cmd.Env = []string{"NOTIFY_SOCKET=" + socket, "SITE=" + site, "OZ_URL=https://127.0.0.1:1", "APP_URL=http://127.0.0.1:1"}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, "Environment="); found {
			cmd.Env = append(cmd.Env, strings.Fields(specifiers.Replace(value))...)
		}
	}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(t, cmd.Start())
	defer func() {
		if cmd.Process.Kill(); t.Failed() {
			t.Logf("%s", &log)
		}
	}()
	awaitMessage(t, messages, "READY=1")
	if info, err := os.Stat(filepath.Join(dir, "run", "admin.sock")); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("the admin endpoint is for everybody: %v %v", info, err)
	}
	reload := exec.Command(caddy(t), "reload", "--config", filepath.Join(systemd, "Caddyfile"), "--force")
	reload.Env = cmd.Env[1:]
	if out, err := reload.CombinedOutput(); err != nil {
		t.Errorf("reloading: %v\n%s", err, out)
	}
	awaitMessage(t, messages, "RELOADING=1")
	awaitMessage(t, messages, "READY=1")
	check(t, cmd.Process.Signal(syscall.SIGTERM))
	awaitMessage(t, messages, "STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Errorf("Caddy ended with %v\n%s", err, &log)
	}
}

// freeAddress finds one below the ports that the system gives to connections.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(10000))
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

func awaitMessage(t *testing.T, messages *net.UnixConn, want string) {
	t.Helper()
	for {
		buffer := make([]byte, 1000)
		n, err := messages.Read(buffer)
		if err != nil {
			t.Fatalf("waiting for %s: %v", want, err)
		}
		if strings.Contains(fmt.Sprintf("\n%s\n", buffer[:n]), "\n"+want+"\n") {
			return
		}
	}
}
