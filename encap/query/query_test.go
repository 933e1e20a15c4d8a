package query

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vstun/encap"
)

var addrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestQuestion(t *testing.T) {
	want := Question{Version: Version, First: 258, Nonce: 0x0102030405060708}
	b := AppendQuestion(nil, want)
	if got, err := ParseQuestion(b); err != nil || got != want || len(b) != Len {
		t.Errorf("%d bytes: %+v, %v", len(b), got, err)
	}
	edited := func(edit func(b []byte) []byte) []byte { return edit(bytes.Clone(b)) }
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"nothing":       {nil, ErrMagic},
		"an answer":     {AppendAnswer(nil, &Answer{Version: Version}), ErrMagic},
		"cut short":     {b[:Len-1], ErrFormat},
		"a byte behind": {edited(func(b []byte) []byte { return append(b, 0) }), ErrFormat},
		"version 0":     {edited(func(b []byte) []byte { b[4] = 0; return b }), ErrFormat},
		"reserved":      {edited(func(b []byte) []byte { b[5] = 1; return b }), ErrFormat},
		"padding":       {edited(func(b []byte) []byte { b[Len-1] = 1; return b }), ErrFormat},
		"later version": {edited(func(b []byte) []byte { b[4], b[5] = 9, 7; return append(b, 1, 2, 3) }), nil},
		"small version": {edited(func(b []byte) []byte { b[4] = 9; return b[:Len-1] }), ErrFormat},
	} {
		if _, err := ParseQuestion(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = ParseQuestion(b) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestAnswer(t *testing.T) {
	addr := netip.MustParseAddr
	want := Answer{Version: Version, First: 1, Nonce: 7, Packets: 1 << 40, Age: 3, Total: 3, EncapPort: 6080,
		Tunnels: 1<<encap.KindIPIP | 1<<encap.KindGUE,
		Program: "0.1.0+0123456789ab", VIPs: []netip.Addr{addr("198.51.100.80"), addr("2001:db8::80")}}
	b := AppendAnswer(nil, &want)
	got, err := ParseAnswer(b)
	if diff := cmp.Diff(want, got, addrs); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if !got.Has(encap.KindGUE) || got.Has(encap.KindGRE) {
		t.Errorf("tunnels %b", got.Tunnels)
	}
	edited := func(edit func(b []byte) []byte) []byte { return edit(bytes.Clone(b)) }
	for name, b := range map[string][]byte{
		"cut short":     b[:len(b)-1],
		"a byte behind": edited(func(b []byte) []byte { return append(b, 4) }),
		"family":        edited(func(b []byte) []byte { b[fixed+len(want.Program)] = 5; return b }),
		"mapped": edited(func(b []byte) []byte {
			return append(b[:len(b)-16],
				addr("::ffff:1.2.3.4").AsSlice()...)
		}),
		"text":      edited(func(b []byte) []byte { b[fixed] = 27; return b }),
		"long text": edited(func(b []byte) []byte { b[fixed-1] = 255; return b }),
		"tunnels":   edited(func(b []byte) []byte { b[fixed-2] = 1 << 4; return b }),
		"total":     edited(func(b []byte) []byte { b[head+13] = 1; return b }),
		"reserved":  edited(func(b []byte) []byte { b[5] = 1; return b }),
		"version 0": edited(func(b []byte) []byte { b[4] = 0; return b }),
	} {
		if _, err := ParseAnswer(b); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if a, err := ParseAnswer(edited(func(b []byte) []byte { b[4] = 9; return b[:head] })); err != nil ||
		a.Version != 9 || a.Nonce != 7 {
		t.Errorf("a later version: %+v, %v", a, err)
	}
}

// An answer is never longer than a question, whatever the agent has.
func TestAnswerIsNotLongerThanItsQuestion(t *testing.T) {
	all := make([]netip.Addr, 1000)
	for i := range all {
		all[i] = netip.AddrFrom16([16]byte{0x20, 1, 14: byte(i >> 8), 15: byte(i)})
	}
	seen := 0
	for seen < len(all) {
		b := AppendAnswer(nil, &Answer{Version: Version, First: uint16(seen), Total: uint16(len(all)),
			Program: strings.Repeat("x", 100), VIPs: all[seen:]})
		a, err := ParseAnswer(b)
		if err != nil || len(b) > Len || len(a.VIPs) == 0 || a.VIPs[0] != all[seen] || len(a.Program) != textMax {
			t.Fatalf("%d bytes from number %d: %+v, %v", len(b), seen, a, err)
		}
		seen += len(a.VIPs)
	}
}

// FuzzQuestion: an accepted question encodes to the same bytes.
func FuzzQuestion(f *testing.F) {
	f.Add(AppendQuestion(nil, Question{Version: Version, First: 1, Nonce: 2}))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := ParseQuestion(b)
		if err == nil && q.Version == Version && !bytes.Equal(AppendQuestion(nil, q), b) {
			t.Errorf("%x is taken for %+v", b, q)
		}
		if err == nil && len(b) < Len {
			t.Errorf("%d bytes are taken", len(b))
		}
	})
}

// FuzzAnswer does likewise for answers.
func FuzzAnswer(f *testing.F) {
	f.Add(AppendAnswer(nil,
		&Answer{Version: Version, Total: 1, Program: "1", VIPs: []netip.Addr{netip.MustParseAddr("198.51.100.80")}}))
	f.Add(AppendAnswer(nil,
		&Answer{Version: Version, Total: 9, Tunnels: 15, VIPs: []netip.Addr{netip.MustParseAddr("2001:db8::1")}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseAnswer(b)
		if err == nil && a.Version == Version && !bytes.Equal(AppendAnswer(nil, &a), b) {
			t.Errorf("%x is taken for %+v", b, a)
		}
	})
}
