package lab

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"time"
)

// WireGuardGo starts wireguard-go's own program on the host. It makes the TUN device of this name, which is down and
// has an MTU of 1,420 bytes. config is the lines of its "set" operation (https://www.wireguard.com/xplatform/). The
// program has a /run of its own, so that its control socket ends with it: that needs unshare
// and mount.
func (h *Host) WireGuardGo(ctx context.Context, program, device, config string) (*Process, error) {
	p, err := h.Start(exec.Command("unshare", "--mount", "sh", "-c",
		`mount -t tmpfs wireguard-go /run && exec "$0" "$@"`, program, "-f", device))
	if err != nil {
		return nil, err
	}
	socket := fmt.Sprintf("/proc/%d/root/run/wireguard/%s.sock", p.Pid(), device)
	if err := configure(ctx, p, socket, config); err != nil {
		_ = p.Stop()
		return nil, fmt.Errorf("%s: wireguard-go: %w: %s", h.Name, err, strings.TrimSpace(p.Output()))
	}
	return p, nil
}

// configure waits for the control socket of wireguard-go, and sets config.
func configure(ctx context.Context, p *Process, socket, config string) error {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	for ; err != nil; conn, err = d.DialContext(ctx, "unix", socket) {
		select {
		case <-ctx.Done():
			return err
		case <-p.Done():
			return fmt.Errorf("it ended: %w", p.Wait())
		case <-time.After(carrierPoll):
		}
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "set=1\n%s\n\n", strings.TrimSpace(config)); err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && answer != "errno=0\n" {
		err = fmt.Errorf("it answers %q to its configuration", answer)
	}
	return err
}
