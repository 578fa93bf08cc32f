package sandbox

import "fmt"

// Size is the value of a flag that reads sizes such as 2MiB. It implements pflag.Value.
type Size int64

// Set reads a size as ParseSize does.
func (s *Size) Set(text string) error {
	n, err := ParseSize(text)
	*s = Size(n)
	return err
}

// String returns the size in the largest unit that leaves no remainder.
func (s *Size) String() string {
	n := int64(*s)
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%dMiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%dKiB", n>>10)
	}
	return fmt.Sprint(n)
}

// Type names the kind of value in help texts.
func (*Size) Type() string { return "size" }
