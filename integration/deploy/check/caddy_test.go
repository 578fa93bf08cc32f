package check

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// spare is what there must be between the end of one thing and the killing of another.
const spare = 5 * time.Second

// lastCall is the end of shutdown_delay, in which new capsules are refused.
const lastCall = 2 * time.Second

// caddy is the binary that ./xcaddy.sh build makes, or the one that OZ_CADDY names.
func caddy(t testing.TB) string {
	t.Helper()
	file := os.Getenv("OZ_CADDY")
	if file == "" {
		file = filepath.Join("..", "..", "..", "caddy")
	}
	file, err := filepath.Abs(file)
	check(t, err)
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("%v (want ./xcaddy.sh build first)", err)
	}
	return file
}

// caddyConfig is what the checks look at in the JSON of a Caddyfile.
type caddyConfig struct {
	Admin struct {
		Config struct {
			Persist *bool `json:"persist"`
		} `json:"config"`
	} `json:"admin"`
	Apps struct {
		HTTP struct {
			GracePeriod   time.Duration `json:"grace_period"`
			ShutdownDelay time.Duration `json:"shutdown_delay"`
			Servers       map[string]struct {
				Listen []string        `json:"listen"`
				Routes json.RawMessage `json:"routes"`

				TrustedProxiesStrict int `json:"trusted_proxies_strict"`
			} `json:"servers"`
		} `json:"http"`
	} `json:"apps"`

	tree any
}

// adapt has Caddy read a Caddyfile, and load it as far as it does without running it.
func adapt(t testing.TB, caddyfile string, env map[string]string) (*caddyConfig, error) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"email", "password", "redis_password"} {
		check(t, os.WriteFile(filepath.Join(dir, name), []byte("secret\n"), 0o600))
	}
	secrets := strings.NewReplacer("/run/secrets/oz_instant", dir)
	file := filepath.Join(dir, "Caddyfile")
	check(t, os.WriteFile(file, []byte(secrets.Replace(caddyfile)), 0o600))
	run := func(command string) ([]byte, error) {
		cmd := exec.Command(caddy(t), command, "--config", file, "--adapter", "caddyfile")
		cmd.Env = []string{"HOME=" + dir, "XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir}
		for name, value := range env {
			cmd.Env = append(cmd.Env, name+"="+secrets.Replace(elsewhere.Replace(value)))
		}
		var out, log bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &log
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("%w: %s", err, log.Bytes())
		}
		return out.Bytes(), nil
	}
	if out, err := exec.Command(caddy(t), "fmt", "--diff", file).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("it isn't formatted: %w: %s", err, out)
	}
	text, err := run("adapt")
	if err != nil {
		return nil, err
	}
	if _, err := run("validate"); err != nil {
		return nil, err
	}
	config := new(caddyConfig)
	return config, errors.Join(json.Unmarshal(text, config), json.Unmarshal(text, &config.tree))
}

// elsewhere keeps the checks on this machine.
var elsewhere = strings.NewReplacer("https://oz.internal", "https://127.0.0.1:1", "redis.internal:6379", "127.0.0.1:1")

// listens reports whether a server is on a port.
func (c *caddyConfig) listens(port int) bool {
	for _, s := range c.Apps.HTTP.Servers {
		if slices.Contains(s.Listen, fmt.Sprintf(":%d", port)) {
			return true
		}
	}
	return false
}

// serves reports whether a server on a port has a route for just this path.
func (c *caddyConfig) serves(port int, path string) bool {
	for _, s := range c.Apps.HTTP.Servers {
		if slices.Contains(s.Listen, fmt.Sprintf(":%d", port)) && strings.Contains(string(s.Routes), `"path":["`+path+`"]`) {
			return true
		}
	}
	return false
}

// ending is how long the gateway takes at most to end.
func (c *caddyConfig) ending() time.Duration {
	return c.Apps.HTTP.ShutdownDelay + c.Apps.HTTP.GracePeriod
}

// examineShutdown compares the grace period with how long a capsule may take that was accepted in the last moment.
func (c *caddyConfig) examineShutdown(wrong *complaints) {
	http := c.Apps.HTTP
	wrong.unless(http.ShutdownDelay > lastCall, "shutdown_delay is %v, and for the last %v of it no capsule is taken", http.ShutdownDelay, lastCall)
	for _, handler := range handlers(c.tree, "oz_instant") {
		capacity, _ := handler["capacity"].(map[string]any)
		longest := nanoseconds(handler, "upload_timeout") + nanoseconds(capacity, "wait") + nanoseconds(handler, "timeout")
		wrong.unless(nanoseconds(handler, "upload_timeout") > 0 && nanoseconds(capacity, "wait") > 0 && nanoseconds(handler, "timeout") > 0,
			"upload_timeout, wait or timeout is not said")
		wrong.unless(http.GracePeriod >= longest+spare, "grace_period is %v, and a capsule may take %v, and the app %v", http.GracePeriod, longest, spare)
	}
	wrong.unless(len(handlers(c.tree, "oz_instant")) > 0, "there is no oz_instant")
}

func nanoseconds(from map[string]any, name string) time.Duration {
	n, _ := from[name].(float64)
	return time.Duration(n)
}

// handlers finds those of a name.
func handlers(tree any, name string) (found []map[string]any) {
	switch node := tree.(type) {
	case []any:
		for _, child := range node {
			found = append(found, handlers(child, name)...)
		}
	case map[string]any:
		if node["handler"] == name {
			return []map[string]any{node}
		}
		for _, child := range node {
			found = append(found, handlers(child, name)...)
		}
	}
	return found
}
