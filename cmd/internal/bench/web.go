package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"
)

const (
	httpPort  = 80
	httpConns = 64 // connections of a measurement
)

// nginx starts a web server on web1. It answers all requests, on all addresses, with a line of text.
func (b *bed) nginx(ctx context.Context) error {
	dir := filepath.Join(b.dir, "nginx")
	// One process in the foreground, as lab.Host.Start wants it.
	config := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log stderr;
events { worker_connections 1024; }
http {
  access_log off; keepalive_requests 1000000000; default_type text/plain;
  client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s;
  scgi_temp_path %[1]s;
  server {
    listen %[2]d backlog=512;
    location / { return 200 "ok\n"; }
  }
}
`, dir, httpPort)
	file := filepath.Join(dir, "nginx.conf")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(file, []byte(config), 0o600)); err != nil {
		return fmt.Errorf("configuration of nginx: %w", err)
	}
	p, err := b.web.Start(exec.Command("nginx", "-e", "stderr", "-p", dir, "-c", file))
	if err != nil {
		return err
	}
	address := netip.AddrPortFrom(b.web.Addr, httpPort).String()
	return await(ctx, p, "accepts connections on "+address, func() bool {
		c, err := b.web.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// measureRequests measures HTTP, unless wrk or nginx is missing.
func (b *bed) measureRequests(ctx context.Context, o Options, r *results) error {
	for _, tool := range []string{"wrk", "nginx"} {
		if _, err := exec.LookPath(tool); err != nil {
			r.skip(o, fmt.Sprintf("HTTP requests: %s is not installed (make deps installs it)", tool))
			return nil
		}
	}
	paths := b.requestPaths()
	served := map[*bed]bool{}
	for _, p := range paths {
		if !served[p.bed] {
			served[p.bed] = true
			if err := p.bed.nginx(ctx); err != nil {
				return err
			}
		}
	}
	o.status("HTTP requests, %d rounds", o.timing.rounds)
	for round := range o.timing.rounds {
		for _, p := range inRound(round, paths) {
			measure := func() error {
				rate, err := p.requests(ctx, o.timing.stream)
				if err != nil {
					return fmt.Errorf("%s: %w%s", p.name, err, p.lastWords())
				}
				r.requests[p.name] = append(r.requests[p.name], rate)
				return nil
			}
			if err := r.repeat(ctx, o, measure); err != nil {
				return err
			}
		}
	}
	return nil
}

// requestPaths returns the paths that are compared by requests and at a constant rate: the kernel's, the director's by
// its TUN device, and the fast path.
func (b *bed) requestPaths() []tcpPath {
	paths := b.tcpPaths()[:2]
	if b.fast != nil {
		paths = slices.Insert(paths, 1, tcpPath{path: b.fast.findPath(pathFast), bed: b.fast, port: iperfPort})
	}
	return paths
}

// requests returns the requests a second of 64 connections. On a fast path it returns an error unless all of them have
// got there.
func (p *tcpPath) requests(ctx context.Context, seconds int) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second+upTimeout)
	defer cancel()
	promotion, err := p.watchPromotion(ctx)
	if err != nil {
		return 0, err
	}
	out, err := p.bed.lab.Client.Run(exec.CommandContext(ctx, "wrk", "-t", "2", "-c", strconv.Itoa(httpConns), "-d",
		fmt.Sprintf("%ds", seconds), fmt.Sprintf("http://%s/", p.addr)))
	if err != nil {
		return 0, fmt.Errorf("wrk: %w", err)
	}
	rate, err := wrkRate(out)
	if err != nil {
		return 0, err
	}
	return rate, promotion.done(ctx, httpConns)
}

var (
	wrkRequests = regexp.MustCompile(`(?m)^Requests/sec: +([0-9.]+)$`)
	wrkErrors   = regexp.MustCompile(`(?m)^ *(Socket errors: .*|Non-2xx .*)$`)
)

// wrkRate reads the requests a second from what wrk prints. Requests without a good answer are an error.
func wrkRate(out []byte) (float64, error) {
	if bad := wrkErrors.FindSubmatch(out); bad != nil {
		return 0, fmt.Errorf("wrk: %s", bad[1])
	}
	found := wrkRequests.FindSubmatch(out)
	if found == nil {
		return 0, errors.New("wrk: its report has no line Requests/sec")
	}
	rate, err := strconv.ParseFloat(string(found[1]), 64)
	if err == nil && rate <= 0 {
		err = errors.New("no request was answered")
	}
	if err != nil {
		return 0, fmt.Errorf("wrk: %w", err)
	}
	return rate, nil
}
