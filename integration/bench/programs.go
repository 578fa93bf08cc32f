package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
)

// program is what a peer runs instead of Caddy. Its configuration is the files of a folder below peers/, with the settings of its
// environment in the place of {$NAME}.
type program struct {
	folder   string
	argv     []string            // may use settings, too
	listen   map[protocol]string // what comes after the address to listen on
	settings []string            // more of them, each as NAME=value

	diesOfSignals bool // of SIGTERM
}

// configure fills in the configuration, writes it to the home of a process, and fills in what that is started with.
func (p *program) configure(of *process, addr string, over protocol) error {
	root, err := caddybin.Root()
	if err != nil {
		return err
	}
	folder := filepath.Join(root, "integration", "bench", "peers", p.folder)
	settings := slices.Concat([]string{"PEER=" + folder}, p.settings, of.cmd.Env)
	settings = append(settings, "LISTEN="+addr+fill(p.listen[over], settings))
	files, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.IsDir() {
			continue
		}
		text, err := os.ReadFile(filepath.Join(folder, f.Name()))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(of.home, f.Name()), []byte(fill(string(text), settings)), 0o600); err != nil {
			return err
		}
	}
	for i, arg := range of.cmd.Args {
		of.cmd.Args[i] = fill(arg, settings)
	}
	of.diesOfSignals = p.diesOfSignals
	return openTo(of.home)
}

// fill puts settings, each NAME=value, in the place of {$NAME}.
func fill(text string, settings []string) string {
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		text = strings.ReplaceAll(text, "{$"+name+"}", value)
	}
	return text
}

// openTo has a user of its own, as nginx's worker, come to home and its files by name. No listing and no file is opened.
func openTo(home string) error {
	for _, dir := range []string{home, filepath.Dir(home)} {
		if err := os.Chmod(dir, 0o711); err != nil {
			return err
		}
	}
	return nil
}

// programPath looks where servers are on Debian, too, which isn't in the PATH of all users.
func programPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	if path = filepath.Join("/usr/sbin", name); exists(path) {
		return path, nil
	}
	return "", err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func nginx(name, folder, module string, settings ...string) contender {
	return contender{
		peer: peer{name: name, decides: true, program: &program{
			folder: folder, settings: settings,
			argv:   []string{"nginx", "-e", "stderr", "-p", "{$HOME}", "-c", "{$HOME}/nginx.conf"},
			listen: map[protocol]string{h1TLS: " ssl", h2TLS: " ssl http2"},
		}},
		needs: []string{"nginx", "/usr/lib/nginx/modules/" + module}, readsJSON: true,
	}
}

// contender is a peer in the table of bench peers.
type contender struct {
	peer
	light     *peer // the variant whose memory is measured; nil: the peer itself
	readsJSON bool
	disk      bool // capsules go to files
	noHTTP2   bool
	needs     []string // programs, and files if they begin with a slash; relative files are below peers/
}

// oneCore holds a Caddy to one core, as the peers have one worker.
var oneCore = []string{"GOMAXPROCS=1"}

// contenders are what is compared; the first is this module. Each has one worker.
func contenders() []contender {
	ours, receiving, unreading := ozInstant, plainReceiving, plainUnreading
	ours.env, receiving.env, unreading.env = oneCore, oneCore, oneCore
	njs := nginx("nginx + njs", "njs", "ngx_http_js_module.so", "BODY_BUFFER=16k", "CUT_FIRST=false")
	njs.disk = true
	return []contender{
		{peer: ours, readsJSON: true},
		{peer: receiving, light: &unreading},
		njs,
		nginx("nginx + njs, tuned", "njs", "ngx_http_js_module.so", "BODY_BUFFER=64m", "CUT_FIRST=true"),
		nginx("nginx + Lua", "lua", "ngx_http_lua_module.so", "CUT_FIRST=false"),
		nginx("nginx + Lua, tuned", "lua", "ngx_http_lua_module.so", "CUT_FIRST=true"),
		{
			peer: peer{name: "Express", decides: true, program: &program{
				folder: "express", argv: []string{"node", "{$PEER}/server.js"}}, env: []string{"NODE_ENV=production"}},
			needs: []string{"node", "express/node_modules/express/package.json"}, readsJSON: true, noHTTP2: true,
		},
		{
			peer: peer{name: "HAProxy", oneHop: true, program: &program{
				folder: "haproxy", argv: []string{"haproxy", "-db", "-f", "{$HOME}/haproxy.cfg"},
				diesOfSignals: true,
				listen:        map[protocol]string{h1TLS: " ssl crt {$CERT} alpn http/1.1", h2TLS: " ssl crt {$CERT} alpn h2"},
			}},
			needs: []string{"haproxy"},
		},
	}
}

func (c contender) hops() int {
	if c.oneHop {
		return 1
	}
	return 2
}

// missing returns an error if something that the contender needs isn't there.
func (c contender) missing() error {
	for _, name := range c.needs {
		if strings.Contains(name, "/") {
			root, err := caddybin.Root()
			if err != nil {
				return err
			}
			if !filepath.IsAbs(name) {
				name = filepath.Join(root, "integration", "bench", "peers", name)
			}
			if !exists(name) {
				return fmt.Errorf("%s needs %s", c.name, filepath.Base(name))
			}
		} else if _, err := programPath(name); err != nil {
			return fmt.Errorf("%s needs %s", c.name, name)
		}
	}
	return nil
}
