package integration_test

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal, and all that a program has written to it.
type terminal struct {
	columns uint16
	user    *os.File // the side of the keyboard and the screen
	program *os.File

	mu    sync.Mutex
	text  strings.Builder
	wrote *sync.Cond
	ended bool
}

func newTerminal(t testing.TB, columns uint16) *terminal {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	check(t, err)
	check(t, unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	check(t, err)
	program, err := os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	check(t, err)
	check(t, unix.IoctlSetWinsize(int(user.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}))
	term := &terminal{columns: columns, user: user, program: program}
	term.wrote = sync.NewCond(&term.mu)
	t.Cleanup(func() { user.Close() })
	return term
}

// start runs a command as one that is called at this terminal. Its standard output is the terminal's, too, unless it is set.
func (term *terminal) start(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	cmd.Stdin, cmd.Stderr = term.program, term.program
	if cmd.Stdout == nil {
		cmd.Stdout = term.program
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: syscall.SIGKILL}
	check(t, cmd.Start())
	term.program.Close()
	tooLong := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() }) // whoever waits for its output then finds out
	t.Cleanup(func() {
		tooLong.Stop()
		cmd.Process.Kill()
	})
	go func() {
		_, err := io.Copy(term, term.user)
		term.mu.Lock()
		defer term.mu.Unlock()
		if !errors.Is(err, syscall.EIO) { // it comes once no program has the terminal any more
			t.Errorf("reading from the terminal: %v", err)
		}
		term.ended = true
		term.wrote.Broadcast()
	}()
}

// Write implements io.Writer.
func (term *terminal) Write(p []byte) (int, error) {
	term.mu.Lock()
	defer term.mu.Unlock()
	term.wrote.Broadcast()
	return term.text.Write(p)
}

// await waits until the program has written something that matches, and returns everything that it has written up to then.
func (term *terminal) await(t testing.TB, pattern string) string {
	t.Helper()
	what := regexp.MustCompile(pattern)
	term.mu.Lock()
	defer term.mu.Unlock()
	for !what.MatchString(term.text.String()) {
		if term.ended {
			t.Fatalf("no %q on the terminal:\n%q", pattern, term.text.String())
		}
		term.wrote.Wait()
	}
	return term.text.String()
}

// typeIn presses keys.
func (term *terminal) typeIn(t testing.TB, keys string) {
	t.Helper()
	_, err := io.WriteString(term.user, keys)
	check(t, err)
}

// screen waits for the program's end, and returns what is left on the terminal, without colors.
func (term *terminal) screen(t testing.TB) string {
	t.Helper()
	term.mu.Lock()
	defer term.mu.Unlock()
	for !term.ended {
		term.wrote.Wait()
	}
	text := strings.ReplaceAll(term.text.String(), "\r\n", "\n")
	text = regexp.MustCompile(`\x1b\[\d*m`).ReplaceAllString(text, "")
	rows := strings.Split(text, "\n")
	for i, row := range rows {
		versions := strings.Split(row, "\r\x1b[K") // of the row, of which the last is left
		for _, version := range versions[:len(versions)-1] {
			if len([]rune(version)) >= int(term.columns) {
				t.Errorf("a row can't be erased: it is longer than %d columns: %q", term.columns, version)
			}
		}
		rows[i] = versions[len(versions)-1]
	}
	return strings.Join(rows, "\n")
}
