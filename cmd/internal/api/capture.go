package api

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

// Capture is the query of GET /capture on a director's control socket: which packets to write, and how many.
type Capture struct {
	Client     netip.Addr // the zero Addr: all
	ClientPort uint16     // 0: all
	VIP        netip.Addr
	Port       uint16
	Realserver netip.AddrPort // port 0: all
	Packets    int
	Time       time.Duration
	Bytes      int
}

// Captured is the summary behind the answer to GET /capture, in packets.
type Captured struct {
	Before uint64 `json:"before"` // written as they came in
	After  uint64 `json:"after"`  // written as they left
	Lost   uint64 `json:"lost"`   // not written, since the buffer was full
}

// The bounds of a capture.
const (
	maxPackets   = 10_000_000
	maxSeconds   = 3600
	maxMegabytes = 10_000
)

// ParseCapture reads the query of GET /capture, whose keys are the flags of `director capture`. An error is one line
// that names the flag.
func ParseCapture(q url.Values) (*Capture, error) {
	c := &Capture{Packets: 1000, Time: time.Minute, Bytes: 64 << 20}
	for key, values := range q {
		if len(values) != 1 {
			return nil, fmt.Errorf("--%s is there %d times: want it once", key, len(values))
		}
		if err := c.set(key, values[0]); err != nil {
			return nil, fmt.Errorf("--%s %q %w", key, values[0], err)
		}
	}
	return c, nil
}

// set sets the field of one flag. The error is about the value.
func (c *Capture) set(key, value string) (err error) {
	number := func(most int, what string) (n int) {
		if n, err = strconv.Atoi(value); err != nil || n < 1 || n > most {
			err = fmt.Errorf("is no number of %s: want 1 to %d", what, most)
		}
		return n
	}
	end := func() (netip.Addr, uint16) {
		a, port, wrong := parseVIP(value)
		if wrong != nil {
			err = errors.New("is no address: want one such as 198.51.100.80 or 198.51.100.80:80")
		}
		return a, uint16(max(port, 0))
	}
	switch key {
	case "client":
		c.Client, c.ClientPort = end()
	case "vip":
		c.VIP, c.Port = end()
	case "realserver":
		if c.Realserver, err = ParseRealserver(value); err != nil {
			err = errors.New("is not an address: want one such as 10.0.11.2 or 10.0.11.2:8080")
		}
	case "count":
		c.Packets = number(maxPackets, "packets")
	case "seconds":
		c.Time = time.Duration(number(maxSeconds, "seconds")) * time.Second
	case "megabytes":
		c.Bytes = number(maxMegabytes, "megabytes") << 20
	default:
		err = errors.New("is unknown: want client, vip, realserver, count, seconds or megabytes")
	}
	return err
}
