package ports

import (
	"net"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// asked is set where the program is run once more, to ask for a port that the first one has.
const asked = "OZ_ASKED_PORT"

func TestFree(t *testing.T) {
	if port, err := strconv.Atoi(os.Getenv(asked)); err == nil {
		if claim(port) {
			t.Errorf("%d is another program's", port)
		}
		return
	}
	seen := map[string]bool{}
	for range 100 {
		address, err := FreeAddress()
		if err != nil || seen[address] {
			t.Fatalf("%s, seen before: %v; %v", address, seen[address], err)
		}
		seen[address] = true
		listener, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		if _, port, _ := net.SplitHostPort(address); Unused(port) {
			t.Errorf("%s counts as unused, with a listener", address)
		}
	}
	port, err := Free()
	if err != nil {
		t.Fatal(err)
	}
	other := exec.Command(os.Args[0], "-test.run=^TestFree$")
	other.Env = append(os.Environ(), asked+"="+port)
	if out, err := other.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
