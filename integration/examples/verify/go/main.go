// Command go runs the verifier in Go, package verifier.
//
//	go run ./integration/examples/verify/go <jwks URL> <audience> <folder file, or - for none> [cool-down and life of keys, in seconds] < seals
//
// It reads a seal from each line and prints "ok <decision>" or why not; the exit code is 1 if one doesn't hold.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/examples/verify/go/verifier"
)

func main() {
	seals := &verifier.Verifier{JWKS: os.Args[1], Audience: os.Args[2], CoolDown: 30 * time.Second, MaxAge: 10 * time.Minute}
	verify := seals.VerifyWithoutFolder
	if os.Args[3] != "-" {
		folder, _ := os.ReadFile(os.Args[3]) // if it can't be read, nothing holds
		verify = func(seal string) (*verifier.Claims, error) { return seals.Verify(seal, folder) }
	}
	if len(os.Args) > 5 {
		seals.CoolDown, _ = time.ParseDuration(os.Args[4] + "s")
		seals.MaxAge, _ = time.ParseDuration(os.Args[5] + "s")
	}
	status := 0
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		claims, err := verify(lines.Text())
		if err != nil {
			status = 1
			fmt.Println("no:", strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		fmt.Println("ok", claims.Decision)
	}
	os.Exit(status)
}
