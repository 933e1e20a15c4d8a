package health

import (
	"errors"
	"fmt"
	"strings"
)

// BytePattern is the bytes that an answer must begin with. Each half of a byte (four bits) may be a wildcard.
type BytePattern struct{ value, mask []byte }

// Match reports whether answer begins with the pattern.
func (p *BytePattern) Match(answer []byte) bool {
	if len(answer) < len(p.value) {
		return false
	}
	for i, v := range p.value {
		if answer[i]&p.mask[i] != v {
			return false
		}
	}
	return true
}

// ParseBytes reads bytes in hexadecimal, two digits each. Blanks may separate them: "48 65 6C" or "48656c".
func ParseBytes(text string) ([]byte, error) {
	if strings.Contains(text, "?") {
		return nil, errors.New("? is for what is expected only")
	}
	p, err := ParseBytePattern(text)
	if err != nil {
		return nil, err
	}
	return p.value, nil
}

// ParseBytePattern reads a pattern: bytes as in ParseBytes, with ? for any digit: "48 ?? 6?".
func ParseBytePattern(text string) (*BytePattern, error) {
	p := &BytePattern{}
	for _, word := range strings.Fields(text) {
		if len(word)%2 != 0 {
			return nil, fmt.Errorf("%q has an odd number of digits", word)
		}
		for i := 0; i < len(word); i += 2 {
			high, highMask, okHigh := halfByte(word[i])
			low, lowMask, okLow := halfByte(word[i+1])
			if !okHigh || !okLow {
				return nil, fmt.Errorf("%q is no byte", word[i:i+2])
			}
			p.value, p.mask = append(p.value, high<<4|low), append(p.mask, highMask<<4|lowMask)
		}
	}
	return p, nil
}

// halfByte reads a hexadecimal digit, or ?.
func halfByte(c byte) (value, mask byte, ok bool) {
	if c == '?' {
		return 0, 0, true
	}
	if c >= 'A' {
		c |= 0x20 // lower case
	}
	i := strings.IndexByte("0123456789abcdef", c)
	return byte(max(i, 0)), 0xf, i >= 0
}

// String returns the pattern in the form of ParseBytePattern: "48 ?? 6?".
func (p *BytePattern) String() string {
	var b strings.Builder
	for i, v := range p.value {
		if i > 0 {
			b.WriteByte(' ')
		}
		for _, half := range []struct{ digit, mask byte }{{v >> 4, p.mask[i] >> 4}, {v & 0xf, p.mask[i] & 0xf}} {
			if half.mask == 0 {
				b.WriteByte('?')
			} else {
				b.WriteByte("0123456789abcdef"[half.digit])
			}
		}
	}
	return b.String()
}
