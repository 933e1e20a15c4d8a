package health

import "context"

// Ping sends an ICMP echo request.
type Ping struct{}

func (p Ping) prepare() (checker, error) { return p, nil }

func (Ping) check(ctx context.Context, at endpoint) (string, error) {
	return "answered", at.path.Ping(ctx, at.to)
}

// descriptors returns 0: all checks share one socket.
func (Ping) descriptors() int { return 0 }
