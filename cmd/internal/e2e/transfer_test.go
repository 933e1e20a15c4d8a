package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// bulk is the number of bytes of a transfer: 100 MB with VSTUN_FULL=1 (`make uploads`).
func bulk() int { return long(100_000_000, 20_000_000, 10_000_000) }

// stream is an endless, reproducible stream of bytes that does not repeat.
func stream() io.Reader { return rand.NewChaCha8([32]byte{1}) }

// TestDownload fetches a file from nginx with curl.
func TestDownload(t *testing.T) { testkit.Families(t, testDownload) }

func testDownload(t *testing.T, ipv6 bool) {
	needTool(t, "nginx", "nginx-light")
	needTool(t, "curl", "curl")
	s := newRunningSiteOf(t, ipv6, 1, service{"tcp", "80", "wrr", []int{1}})
	passed := s.count(s.Director, "eth0", lab.Filter{Source: s.VIP})
	dir := s.nginx(s.Webs[0])
	f, err := os.Create(filepath.Join(dir, "bulk"))
	if err != nil {
		t.Fatal(err)
	}
	sent, got := sha256.New(), sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, sent), stream(), int64(bulk())); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	size := &counter{w: got}
	cmd := exec.Command("curl", "-sSf", "--max-time", "60", "http://"+s.at(80)+"/bulk")
	cmd.Stdout = size
	if r := runFor(t, s.Client, cmd, 70*time.Second); r.code != 0 {
		t.Fatalf("curl: exit status %d: %s", r.code, r.stderr)
	}
	if size.n != bulk() {
		t.Errorf("%d bytes came, want %d", size.n, bulk())
	}
	if a, b := hex.EncodeToString(sent.Sum(nil)), hex.EncodeToString(got.Sum(nil)); a != b {
		t.Errorf("SHA-256 of the sent bytes is %s, of the received ones %s", a, b)
	}
	if n := passed(); n != 0 {
		t.Errorf("%d packets from the VIP passed the director", n)
	}
}

// counter counts the bytes that are written.
type counter struct {
	w io.Writer
	n int
}

// Write implements io.Writer.
func (c *counter) Write(b []byte) (int, error) {
	c.n += len(b)
	return c.w.Write(b)
}

// TestUpload uploads to a web server. Its full-size packets must fit the tunnel.
func TestUpload(t *testing.T) {
	const offer, plain = "mss = 65495", `offload = "off"`
	cases := []struct {
		name     string
		agent    string              // keys of [realserver]
		director string              // keys of [director]
		links    map[string]lab.Link // of the lab
		// payload of the client's segments at the end, in bytes; TCP's timestamps take 12 of the MSS
		least int
		most  int
		icmp  bool // the client finds out by ICMP
	}{
		// 1500 - 20 (outer) - 20 (inner) - 20 (TCP) = 1440
		{name: "auto", least: 1400, most: 1440},
		{name: "auto-plain", agent: plain, director: plain, least: 1400, most: 1440},
		// The server offers 1460. A director with offloads segments the client's GSO packets to the size that fits
		// the tunnel, unknown to the client. One without offloads reports an MTU of 1480 bytes to the client.
		{name: "large", agent: offer, least: 1400, most: 1460},
		{name: "icmp", agent: offer, director: plain, least: 1400, most: 1440, icmp: true},
		// The path to the realserver has a smaller MTU than the links of director and client: 1400 - 60 = 1340.
		{name: "narrow", links: map[string]lab.Link{"web1": {MTU: 1400}}, least: 1300, most: 1340},
		// The same, and the server offers too much: the director learns the MTU from the router, and reports it to the
		// client.
		{name: "narrow-icmp", agent: offer, director: plain, links: map[string]lab.Link{"web1": {MTU: 1400}},
			least: 1300, most: 1340, icmp: true},
		// The director's link has the smallest MTU.
		{name: "director", agent: offer, director: plain, links: map[string]lab.Link{"director": {MTU: 1400}},
			least: 1300, most: 1340, icmp: true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, 1, c.links)
			s.startAgents(c.agent)
			s.startDirector(c.director, service{"tcp", "80", "wrr", []int{1}})
			s.acceptUploads(s.Webs[0], 80)

			conn := s.dial("tcp", 80)
			if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			answer, err := put(conn, bulk())
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf("%d bytes, all as they should be", bulk()); answer != want {
				t.Errorf("the server answers %q, want %q", answer, want)
			}
			t.Logf("%.0f Mbit/s", float64(bulk())*8/1e6/time.Since(begin).Seconds())
			if mss := sendMSS(t, conn); mss < c.least || mss > c.most {
				t.Errorf("the client's segments carry %d bytes, want %d to %d", mss, c.least, c.most)
			}
			st := s.director.balance()
			if big := st.Drops["too_big"]; (big > 0) != c.icmp && c.name != "large" {
				t.Errorf("%d packets were too big for the tunnel, want more than 0: %v", big, c.icmp)
			}
			if delete(st.Drops, "too_big"); len(st.Drops) != 0 {
				t.Errorf("the director dropped %v", st.Drops)
			}
			s.agents[0].mustLetIn(bulk())
		})
	}
}

// acceptUploads serves HTTP on h for a port of the VIP, and compares the body of each PUT with the stream.
func (s *site) acceptUploads(h *lab.Host, port uint16) {
	s.t.Helper()
	s.acceptUploadsAt(h, s.behind(h, port))
}

// acceptUploadsAt is acceptUploads on an address of h, or on all (":80"). The query bytes=N gets the first N bytes of
// the stream.
func (s *site) acceptUploadsAt(h *lab.Host, address string) {
	s.t.Helper()
	ln, err := h.Listen("tcp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if size, err := strconv.ParseInt(r.URL.Query().Get("bytes"), 10, 64); err == nil {
			_, _ = io.CopyN(w, stream(), size) // the client notices
			return
		}
		n, want, got := 0, make([]byte, 1<<16), make([]byte, 1<<16)
		same := stream()
		for {
			k, err := r.Body.Read(got)
			_, _ = io.ReadFull(same, want[:k]) // never fails
			if string(want[:k]) != string(got[:k]) {
				http.Error(w, fmt.Sprintf("bytes %d to %d differ from the sent ones", n, n+k), http.StatusBadRequest)
				return
			}
			if n += k; err == io.EOF {
				fmt.Fprintf(w, "%d bytes, all as they should be", n)
				return
			} else if err != nil {
				http.Error(w, fmt.Sprintf("%d bytes, then %v", n, err), http.StatusBadRequest)
				return
			}
		}
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(ln) // returns when closed
	}()
	s.t.Cleanup(func() {
		server.Close()
		<-done
	})
}

// put sends the first n bytes of the stream as one HTTP request and returns the body of the answer.
func put(conn net.Conn, n int) (string, error) { return putFrom(conn, stream(), n) }

// putFrom is put with another reader of the stream.
func putFrom(conn net.Conn, from io.Reader, n int) (string, error) {
	req, err := http.NewRequest(http.MethodPut, "http://"+conn.RemoteAddr().String()+"/",
		io.LimitReader(from, int64(n)))
	if err != nil {
		return "", err
	}
	req.ContentLength = int64(n)
	if err := req.Write(conn); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// pull reads the first n bytes of the stream from a server of uploads.
func pull(conn net.Conn, n int) error {
	if _, err := fmt.Fprintf(conn, "GET /?bytes=%d HTTP/1.0\r\n\r\n", n); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	want, got := make([]byte, 1<<16), make([]byte, 1<<16)
	same := stream()
	for at := 0; ; {
		k, err := resp.Body.Read(got)
		_, _ = io.ReadFull(same, want[:k]) // never fails
		if !bytes.Equal(want[:k], got[:k]) {
			return fmt.Errorf("bytes %d to %d differ from the sent ones", at, at+k)
		}
		if at += k; err == io.EOF && at == n {
			return nil
		} else if err != nil {
			return fmt.Errorf("%d bytes of %d, then %w", at, n, err)
		}
	}
}

// sendMSS returns the largest payload of the segments that the kernel sends on a TCP connection, in bytes.
func sendMSS(t *testing.T, conn net.Conn) int {
	t.Helper()
	return int(tcpInfo(t, conn).Snd_mss)
}

// tcpInfo returns what the kernel knows of a TCP connection: tcp(7).
func tcpInfo(t *testing.T, conn net.Conn) (info *unix.TCPInfo) {
	t.Helper()
	onSocket(t, conn, func(fd int) (err error) {
		info, err = unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
		return err
	})
	return info
}

// onSocket calls fn with the connection's descriptor.
func onSocket(t *testing.T, conn net.Conn, fn func(fd int) error) {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	failed := raw.Control(func(fd uintptr) { err = fn(int(fd)) })
	if failed != nil || err != nil {
		t.Fatal(failed, err)
	}
}
