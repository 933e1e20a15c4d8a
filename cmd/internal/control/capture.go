package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/words"
)

// Capture says what GET /capture on a director's control socket is to take.
type Capture struct {
	Client     netip.Addr // the zero Addr: all
	ClientPort uint16     // 0: all
	VIP        netip.Addr
	Port       uint16
	Realserver netip.Addr
	Packets    int
	Time       time.Duration
	Bytes      int
}

// Captured is what it has taken, in packets: the trailer of the answer.
type Captured struct {
	Before uint64 `json:"before"` // the tunnel
	After  uint64 `json:"after"`
	Lost   uint64 `json:"lost"` // for which there was no room
}

// The bounds of a capture.
const (
	maxPackets   = 10_000_000
	maxSeconds   = 3600
	maxMegabytes = 10_000
)

// ParseCapture reads the query of GET /capture, in which the keys are the flags of `director capture`. An error is one
// line that names the flag.
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

// set sets what one flag says. The error says what is wrong with the value.
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
		if c.Realserver, err = netip.ParseAddr(value); err != nil {
			err = errors.New("is not an address: want one such as 10.0.11.2")
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

// CaptureCommand writes packets of the running director to a file.
func CaptureCommand(socket *Socket) *cobra.Command {
	filters := pflag.NewFlagSet("filters", pflag.ContinueOnError)
	filters.String("client", "", "only of this client, `ADDRESS[:PORT]`")
	filters.String("vip", "", "only to this VIP, `ADDRESS[:PORT]`")
	filters.String("realserver", "", "only to the realserver with this `ADDRESS`")
	filters.String("count", "1000", "no more than `N` packets, before and after the tunnel together")
	filters.String("seconds", "60", "no longer than `S` seconds")
	filters.String("megabytes", "64", "no more than `N` megabytes")
	var file string
	var asJSON bool
	c := &cobra.Command{Use: "capture -w FILE", Short: "Write packets to a pcapng file, as they come in and as they " +
		"go into the tunnel", Args: cobra.NoArgs,
		Example: "  director capture --client 192.0.2.7 -w flow.pcapng\n  director capture --vip 198.51.100.80:80 " +
			"--seconds 5 -w - | tshark -r -",
		RunE: func(c *cobra.Command, _ []string) error {
			q := url.Values{}
			filters.VisitAll(func(f *pflag.Flag) {
				if f.Changed {
					q.Set(f.Name, f.Value.String())
				}
			})
			if file == "" {
				return daemon.UsageError{Err: errors.New("--write is missing: want -w FILE, or -w - into a pipe")}
			}
			_, err := ParseCapture(q)
			if err != nil {
				return daemon.UsageError{Err: err}
			}
			if f, ok := c.OutOrStdout().(*os.File); ok && file == "-" && term.IsTerminal(int(f.Fd())) {
				return daemon.UsageError{Err: errors.New("-w -: a capture is nothing for a terminal: name a file, " +
					"or pipe it into tshark -r -")}
			}
			path, err := socket.Path()
			if err != nil {
				return err
			}
			got, err := capture(c, path, q, file)
			if err != nil {
				return plain(err)
			}
			if asJSON {
				return PrintJSON(c.ErrOrStderr(), got)
			}
			_, err = fmt.Fprintf(c.ErrOrStderr(), "%s before the tunnel, %d after it, %d lost\n",
				words.Count(got.Before, "packet"), got.After, got.Lost)
			return err
		}}
	c.Flags().AddFlagSet(filters)
	c.Flags().StringVarP(&file, "write", "w", "", "`FILE` to write, - for standard output")
	c.Flags().BoolVar(&asJSON, "json", false, "how many packets there are as JSON, on standard error")
	completeFlags(c, socket)
	return socket.Flag(c)
}

// capture writes what the director answers. SIGINT and SIGTERM end the capture, not the file.
func capture(c *cobra.Command, socket string, q url.Values, file string) (got Captured, err error) {
	resp, err := do(c.Context(), http.MethodGet, socket, "/capture?"+q.Encode(), 0)
	if err != nil {
		return got, err
	}
	defer resp.Body.Close()
	signalled, stop := daemon.Signals(c.Context())
	defer stop()
	defer context.AfterFunc(signalled, func() {
		var ignored struct{}
		if ask(c.Context(), http.MethodPost, socket, "/capture/end", 0, &ignored) != nil {
			resp.Body.Close() // it doesn't answer
		}
	})()
	out := c.OutOrStdout()
	if file != "-" {
		f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600) // it may hold what clients have sent
		if err != nil {
			return got, err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		out = f
	}
	if _, err := io.Copy(out, resp.Body); err != nil {
		return got, fmt.Errorf("the capture is cut off: %w", err)
	}
	if err := json.Unmarshal([]byte(resp.Trailer.Get(summaryHeader)), &got); err != nil {
		return got, fmt.Errorf("%s: /capture: answer is not as expected: %w", socket, err)
	}
	return got, nil
}
