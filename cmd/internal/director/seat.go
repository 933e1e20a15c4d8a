package director

import (
	"fmt"
	"net/netip"
)

// seat is a realserver of a service.
type seat struct {
	service string
	address netip.Addr
}

func (s seat) String() string { return fmt.Sprintf("service %q: realserver %v", s.service, s.address) }
