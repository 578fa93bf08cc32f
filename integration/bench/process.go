package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/cli"
)

// process is a program that bench runs, with a folder and a log of its own.
type process struct {
	name    string
	cmd     *exec.Cmd
	home    string
	logFile string
	ended   chan struct{} // closed when it has ended

	diesOfSignals bool // of SIGTERM, once it has done what that asks for: a clean end has no exit status
}

// newProcess returns a program that is to run in a new folder below dir.
func newProcess(dir, name, program string, arguments ...string) (*process, error) {
	home, err := os.MkdirTemp(dir, name)
	if err != nil {
		return nil, err
	}
	p := &process{name: name, cmd: exec.Command(program, arguments...), home: home, logFile: filepath.Join(home, "log"), ended: make(chan struct{})}
	p.cmd.Dir = home
	// The environment is made from nothing: a proxy or a setting of Go's garbage collector must not decide a comparison.
	p.cmd.Env = []string{"HOME=" + home, "XDG_CONFIG_HOME=" + home, "XDG_DATA_HOME=" + home, "TMPDIR=" + home}
	return p, nil
}

// start runs the program, and returns when an address of its can be connected to.
func (p *process) start(ctx context.Context, addr string) error {
	log, err := os.Create(p.logFile)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	dieWithBench(p.cmd)
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go func() {
		p.cmd.Wait() // stop looks at how it ended
		close(p.ended)
	}()
	if err := cli.AwaitListening(ctx, addr, p.ended); err != nil {
		return errors.Join(err, p.stop())
	}
	return nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends the program as systemd would. After any other end than a clean one the figures mean nothing: the error quotes the log.
func (p *process) stop() error {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(timeLimit):
		p.kill()
	}
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if p.cmd.ProcessState.Success() || ok && p.diesOfSignals && status.Signal() == syscall.SIGTERM {
		return nil
	}
	return fmt.Errorf("the %s ended with %v; its log ends with\n%s", p.name, p.cmd.ProcessState, p.lastLines(10))
}

// kill ends the program as a crash would, and returns when it has ended.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.ended
}

func (p *process) lastLines(n int) string {
	text, err := os.ReadFile(p.logFile)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
