package connsync

import (
	"encoding/hex"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"vstun/balancer/envelope"
)

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// TestRecordBytes holds records against their bytes, written down from ip_vs_sync.c.
func TestRecordBytes(t *testing.T) {
	for name, c := range map[string]struct {
		record Record
		bytes  string
	}{
		"tcp": {Record{Protocol: 6, Flags: FlagTunnel | FlagNoOutput, State: 1, Client: at("192.0.2.1:40000"),
			Virtual: at("198.51.100.80:80"), Real: at("10.0.11.2:80"), Timeout: 900},
			"00 06 0024 00000082 0001 9c40 0050 0050 00000000 00000384 c0000201 c6336450 0a000b02"},
		"udp, nat": {Record{Protocol: 17, Flags: FlagInactive, Client: at("192.0.2.1:5000"),
			Virtual: at("198.51.100.80:53"), Real: at("10.0.11.2:5353"), Timeout: 300, Mark: 7},
			"00 11 0024 00000100 0000 1388 0035 14e9 00000007 0000012c c0000201 c6336450 0a000b02"},
		"ipv6 template": {Record{Protocol: 6, Flags: FlagTunnel | FlagNoOutput | FlagInactive | FlagTemplate, State: 1,
			Client: at("[2001:db8::1]:0"), Virtual: at("[2001:db8::80]:443"),
			Real: at("[2001:db8::2]:443"), Timeout: 360},
			"01 06 0048 00001182 0001 0000 01bb 01bb 00000000 00000168 20010db8000000000000000000000001" +
				"20010db8000000000000000000000080 20010db8000000000000000000000002"},
		"options": {Record{Protocol: 6, Flags: FlagTunnel | FlagNoOutput, State: 1, Client: at("192.0.2.1:40000"),
			Virtual: at("198.51.100.80:80"), Real: at("[2001:db8::2]:80"), Timeout: 900,
			Options: Options{Left: 258 * time.Second, HasLeft: true, Hearsay: true, Service: "web"}},
			"00 06 0042 00000082 0001 9c40 0050 0050 00000000 00000384 c0000201 c6336450 00000000" +
				"71 02 0102 74 01 00 72 10 20010db8000000000000000000000002 73 03 776562 0000"},
		"long time": {Record{Protocol: 6, State: 1, Client: at("192.0.2.1:1"), Virtual: at("198.51.100.80:80"),
			Real: at("10.0.11.2:80"), Options: Options{Left: 100_000 * time.Second, HasLeft: true}},
			"00 06 002a 00000000 0001 0001 0050 0050 00000000 00000000 c0000201 c6336450 0a000b02 71 04 000186a0 0000"},
	} {
		t.Run(name, func(t *testing.T) {
			want := strings.ReplaceAll(c.bytes, " ", "")
			got := appendRecord(nil, &c.record)
			if hex.EncodeToString(got) != want || len(got) != c.record.paddedSize() {
				t.Fatalf("%x\nwant %s", got, want)
			}
			var back Record
			rest, fault := parseRecord(append(got, 0xee), &back, true)
			if fault != Accepted || len(rest) != 1 || !reflect.DeepEqual(back, c.record) {
				t.Errorf("%v, %d bytes left, %+v\nwant %+v", fault, len(rest), back, c.record)
			}
		})
	}
}

// TestBadRecords: a fault of one record, and faults after which the rest of the datagram is refused, are those of the
// kernel.
func TestBadRecords(t *testing.T) {
	good := appendRecord(nil, &Record{Protocol: 6, State: 1, Client: at("192.0.2.1:1"), Virtual: at("198.51.100.80:80"),
		Real: at("10.0.11.2:80")})
	change := func(at int, bytes ...byte) []byte {
		b := append([]byte(nil), good...)
		copy(b[at:], bytes)
		return b
	}
	// with returns a record with these options, of one byte each of type, length and data.
	with := func(options ...byte) []byte {
		b := append(append([]byte(nil), good...), options...)
		b[3] = byte(len(b))
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		return b
	}
	for name, c := range map[string]struct {
		b    []byte
		want Fault
	}{
		"good":                       {good, Accepted},
		"truncated":                  {good[:35], BadRecord},
		"unknown type":               {change(0, 2), BadRecord},
		"IPv6 in 36 bytes":           {change(0, 1), BadRecord},
		"another version":            {change(2, 0x10), BadRecord},
		"size beyond the datagram":   {change(3, 40), BadRecord},
		"size of less than a record": {change(3, 35), BadRecord},
		"half an option":             {with(1), BadRecord},
		"an option of length 0":      {with(0x41, 0), BadRecord},
		"an option beyond the end":   {with(0x55, 2, 0), BadRecord},
		"sequences of 23 bytes":      {with(append([]byte{1, 23}, make([]byte, 23)...)...), BadRecord},
		"sequences":                  {with(append([]byte{1, 24}, make([]byte, 24)...)...), Accepted},
		"twice":                      {with(2, 1, 0, 2, 1, 0), BadRecord},
		"unknown":                    {with(9, 1, 0), UnknownOption},
		"unknown, may be ignored":    {with(0x49, 1, 0), Accepted},
		"engine's name of 17 bytes":  {with(append([]byte{3, 17}, make([]byte, 17)...)...), BadRecord},
		"real address of 5 bytes":    {with(optionReal, 5, 1, 2, 3, 4, 5), BadRecord},
		"real address, not mixed":    {with(optionReal, 4, 1, 2, 3, 4), BadRecord},
		"time of 3 bytes":            {with(optionLeft, 3, 1, 2, 3), BadRecord},
	} {
		var r Record
		if _, got := parseRecord(c.b, &r, true); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestHeaders: what the kernel refuses is refused.
func TestHeaders(t *testing.T) {
	for name, c := range map[string]struct {
		b    []byte
		want Fault
	}{
		"empty":        {nil, BadHeader},
		"short":        {[]byte{0, 0, 0, 7, 0, 1, 0}, BadHeader},
		"none":         {[]byte{0, 3, 0, 8, 0, 1, 0, 0}, Accepted},
		"wrong size":   {[]byte{0, 3, 0, 9, 0, 1, 0, 0}, BadHeader},
		"version 0":    {[]byte{1, 3, 0, 8, 0, 0, 0, 0}, OldVersion},
		"spare is set": {[]byte{0, 3, 0, 8, 0, 1, 0, 1}, OldVersion},
	} {
		if h, _, got := parseHeader(c.b); got != c.want || got == Accepted && h.id != 3 {
			t.Errorf("%s: %q %+v, want %q", name, got, h, c.want)
		}
	}
}

// TestKernelRefusesEnvelopes: a kernel on the same group takes no envelope for a datagram of its own.
func TestKernelRefusesEnvelopes(t *testing.T) {
	s := envelope.New(make([]byte, MinKey), protocol)
	b := s.Seal(s.Head(nil, 0, records, 0, 1, 1))
	if _, _, fault := parseHeader(b); fault != BadHeader {
		t.Errorf("%q, want bad_header", fault)
	}
}

// TestCodecAllocations: neither direction allocates.
func TestCodecAllocations(t *testing.T) {
	s := envelope.New(make([]byte, MinKey), protocol)
	buf := make([]byte, 0, 1500)
	r := Record{Protocol: 6, State: 1, Client: at("192.0.2.1:1"), Virtual: at("198.51.100.80:80"),
		Real: at("10.0.11.2:80"), Options: Options{HasLeft: true}}
	var back Record
	if n := testing.AllocsPerRun(100, func() {
		b := s.Head(buf, 0, records, 1, 1, 1)
		b = s.Seal(appendRecord(b, &r))
		e, _ := opened(s, b)
		_, _ = parseRecord(e.Body, &back, true)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestOwnOptionsInModeIPVS: options of ours are ignored as by the kernel, malformed ones too.
func TestOwnOptionsInModeIPVS(t *testing.T) {
	r := Record{Protocol: 6, State: 1, Client: at("192.0.2.1:1"), Virtual: at("198.51.100.80:80"),
		Real: at("10.0.11.2:80"), Timeout: 900}
	b := appendRecord(nil, &r)
	b = append(b, optionReal, 16, 0x20, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9)
	b = append(b, optionService, 3, 'w', 'e', 'b', optionHearsay, 1, 0, optionLeft, 3, 1, 2, 3)
	b[3] = byte(len(b))
	var back Record
	if rest, fault := parseRecord(b, &back, false); fault != Accepted || len(rest) > 0 || back != r {
		t.Errorf("%q, %d bytes left, %+v", fault, len(rest), back)
	}
}
