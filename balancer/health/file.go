package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// File reads a number from a file, as keepalived's FILE_CHECK does. The number times Factor is an offset of the
// realserver's weight. A product of math.MinInt32 or less is a failure. With Factor 0 a number other than 0 is a
// failure. A file that is missing or empty counts as the number 0.
type File struct {
	Path    string // absolute
	Factor  int    // from -math.MaxInt32 to math.MaxInt32
	Reverse bool   // use -Factor; with Factor 0, the number 0 alone is a failure
}

func (p File) prepare() (checker, error) {
	if !filepath.IsAbs(p.Path) {
		return nil, fmt.Errorf("path: %q is not an absolute path", p.Path)
	}
	return p, nil
}

func (p File) check(ctx context.Context, _ endpoint) (string, error) {
	reason, _, err := p.weigh(ctx)
	return reason, err
}

func (p File) weigh(ctx context.Context) (string, int, error) {
	number, err := p.read(ctx)
	if err != nil {
		return "", 0, localError{err}
	}
	factor := p.Factor
	if p.Reverse {
		factor = -factor
	}
	reason := fmt.Sprintf("%s has %d", p.Path, number)
	if factor == 0 {
		if (number != 0) != p.Reverse {
			return "", 0, errors.New(reason)
		}
		return reason, 0, nil
	}
	product := number * int64(factor) // both fit 33 bits
	if product <= math.MinInt32 {
		return "", 0, fmt.Errorf("%s, which times %d is a failure", reason, factor)
	}
	offset := int(min(product, math.MaxInt32))
	return fmt.Sprintf("%s: weight %+d", reason, offset), offset, nil
}

const (
	maxNumber = 128 // bytes of a file that are read
	// bound of the time for which a file can be empty: a shell's > truncates it before the program writes
	rewrite = 50 * time.Millisecond
)

// read returns the file's number, which is from math.MinInt32 to math.MaxInt32 + 1.
func (p File) read(ctx context.Context) (int64, error) {
	text, err := readNumber(ctx, p.Path)
	if err == nil && text == "" {
		select {
		case <-ctx.Done():
		case <-time.After(rewrite):
		}
		text, err = readNumber(ctx, p.Path)
	}
	if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(text) == "" {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	number, ok := leadingNumber(text)
	if !ok || number < math.MinInt32 || number > math.MaxInt32+1 {
		return 0, fmt.Errorf("%s: %.20q is no number from -2147483648 to 2147483648", p.Path, strings.TrimSpace(text))
	}
	return number, nil
}

// readNumber reads the beginning of a file. A FIFO without writer is empty.
func readNumber(ctx context.Context, path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = f.SetReadDeadline(deadline) // a regular file has none, and needs none
	}
	text, err := io.ReadAll(io.LimitReader(f, maxNumber))
	return string(text), err
}

// leadingNumber reads the integer at the beginning of text, as strtol(3) does with base 0: white space, a sign, digits.
// Digits after 0x are hexadecimal, digits after 0 are octal.
func leadingNumber(text string) (number int64, ok bool) {
	text = strings.TrimLeft(text, " \t\n\v\f\r")
	end := 0
	if end < len(text) && (text[end] == '-' || text[end] == '+') {
		end++
	}
	sign, digits := text[:end], text[end:]
	base, all := 10, "0123456789"
	switch {
	case len(digits) > 2 && (digits[:2] == "0x" || digits[:2] == "0X") &&
		strings.ContainsRune("0123456789abcdefABCDEF", rune(digits[2])):
		base, all, digits = 16, "0123456789abcdefABCDEF", digits[2:]
	case len(digits) > 1 && digits[0] == '0':
		base, all = 8, "01234567"
	}
	digits = digits[:len(digits)-len(strings.TrimLeft(digits, all))]
	number, err := strconv.ParseInt(sign+digits, base, 64)
	return number, err == nil
}
