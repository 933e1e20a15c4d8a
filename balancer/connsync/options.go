package connsync

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// Options are the optional fields behind a record: type, length of the data, data. The kernel ignores those of ours.
type Options struct {
	// Left is the time until the connection ends, if HasLeft is set. Without it the whole timeout is left.
	Left    time.Duration
	HasLeft bool
	// Hearsay marks a connection of which the sender has seen no packet since another director reported it.
	Hearsay bool
	// Service is the name of the connection's service; "": its virtual address and port name it. Longer names than
	// maxName are not sent.
	Service string
}

// Types of options (Linux ip_vs_sync.c, IPVS_OPT_…). A receiver ignores a type with the bit optionIgnorable that it
// does not know, and drops the record for one without it.
const (
	optionSequences = 1 // of VS/NAT's application helpers
	optionPEData    = 2 // of persistence engines
	optionPEName    = 3
	optionIgnorable = 0x40

	// Ours, from optionLeft to optionHearsay. The kernel knows none of them.
	optionLeft    = optionIgnorable | 0x31 // seconds, in 2 or 4 bytes
	optionReal    = optionIgnorable | 0x32 // the real address, of another family than the record
	optionService = optionIgnorable | 0x33 // the service's name
	optionHearsay = optionIgnorable | 0x34 // 1 byte, without meaning: an option has some data
)

// Lengths of the kernel's options.
const (
	sequencesLength = 24
	maxPEName       = 16
	maxName         = 255
)

// mixed reports whether the real address is of another family than the client's.
func (r *Record) mixed() bool {
	return r.Real.Addr().IsValid() && r.Real.Addr().Is4() != r.Client.Addr().Is4()
}

// secondsLeft returns the data of optionLeft, in seconds, and its length.
func (o *Options) secondsLeft() (seconds uint32, length int) {
	seconds = uint32(min(max(o.Left, 0)/time.Second, 1<<32-1))
	if seconds < 1<<16 {
		return seconds, 2
	}
	return seconds, 4
}

// named reports whether the name of the service is sent.
func (o *Options) named() bool { return o.Service != "" && len(o.Service) <= maxName }

func (r *Record) optionsSize() (n int) {
	if r.HasLeft {
		_, length := r.secondsLeft()
		n += 2 + length
	}
	if r.Hearsay {
		n += 3
	}
	if r.mixed() {
		n += 2 + r.Real.Addr().BitLen()/8
	}
	if r.named() {
		n += 2 + len(r.Service)
	}
	return n
}

func (r *Record) appendOptions(b []byte) []byte {
	if r.HasLeft {
		seconds, length := r.secondsLeft()
		b = append(b, optionLeft, byte(length))
		if length == 2 {
			b = binary.BigEndian.AppendUint16(b, uint16(seconds))
		} else {
			b = binary.BigEndian.AppendUint32(b, seconds)
		}
	}
	if r.Hearsay {
		b = append(b, optionHearsay, 1, 0)
	}
	if r.mixed() {
		four := r.Real.Addr().Is4()
		b = append(b, optionReal, byte(r.Real.Addr().BitLen()/8))
		b = appendAddress(b, r.Real.Addr(), four)
	}
	if r.named() {
		b = append(b, optionService, byte(len(r.Service)))
		b = append(b, r.Service...)
	}
	return b
}

// parseOptions parses the options of a record: BadRecord makes the rest of the datagram unreadable, as in the kernel.
// UnknownOption refuses the record. own is that of parseRecord.
func (r *Record) parseOptions(b []byte, own bool) (fault Fault) {
	var seen [optionPEName + 1]bool // of the kernel's
	for len(b) > 0 {
		if len(b) < 2 || b[1] == 0 || len(b) < 2+int(b[1]) {
			return BadRecord
		}
		kind, data := b[0], b[2:2+int(b[1])]
		b = b[2+len(data):]
		if known := kind &^ optionIgnorable; known <= optionPEName {
			if seen[known] {
				return BadRecord // ip_vs_proc_seqopt and ip_vs_proc_str refuse a second one
			}
			seen[known] = true
		}
		parse := parseKernelOption
		if own && optionLeft <= kind && kind <= optionHearsay {
			parse = r.parseOption
		}
		switch parse(kind, data) {
		case BadRecord:
			return BadRecord
		case UnknownOption:
			fault = UnknownOption
		}
	}
	return fault
}

// parseOption parses an option of ours.
func (r *Record) parseOption(kind byte, data []byte) Fault {
	switch kind {
	case optionLeft:
		switch len(data) {
		case 2:
			r.Left, r.HasLeft = time.Duration(binary.BigEndian.Uint16(data))*time.Second, true
		case 4:
			r.Left, r.HasLeft = time.Duration(binary.BigEndian.Uint32(data))*time.Second, true
		default:
			return BadRecord
		}
	case optionHearsay:
		r.Hearsay = true
	case optionReal:
		a, ok := netip.AddrFromSlice(data)
		if !ok || a.Is4() == r.Client.Addr().Is4() {
			return BadRecord
		}
		r.Real = netip.AddrPortFrom(a, r.Real.Port())
	case optionService:
		if len(data) > maxName {
			return BadRecord
		}
		r.Service = string(data)
	}
	return Accepted
}

// parseKernelOption checks an option of the kernel, or one that is unknown.
func parseKernelOption(kind byte, data []byte) Fault {
	switch kind &^ optionIgnorable {
	case optionSequences:
		if len(data) != sequencesLength {
			return BadRecord
		}
	case optionPEData:
	case optionPEName:
		if len(data) > maxPEName {
			return BadRecord
		}
	default:
		if kind&optionIgnorable == 0 {
			return UnknownOption
		}
	}
	return Accepted
}
