package balancer

import "slices"

// ports finds the service of a port of one VIP. Single ports are in a map, ranges in a sorted list: a lookup or a
// reload stays cheap, however many or wide the ranges are. A port in neither belongs to the service of EveryPort.
type ports struct {
	single map[portKey]*service
	ranges []portRange // by protocol and first port; they don't overlap
	every  map[uint8]*service
}

func newPorts() *ports {
	return &ports{single: map[portKey]*service{}, every: map[uint8]*service{}}
}

type portKey struct {
	proto uint8
	port  uint16
}

type portRange struct {
	proto       uint8
	first, last uint16
	service     *service
}

func (p *ports) add(s *service, r PortRange) {
	if r == EveryPort {
		p.every[s.config.Protocol] = s
		return
	}
	if r.First == r.Last {
		p.single[portKey{s.config.Protocol, r.First}] = s
		return
	}
	n := portRange{s.config.Protocol, r.First, r.Last, s}
	i, _ := slices.BinarySearchFunc(p.ranges, n, func(a, b portRange) int { return a.compare(b.proto, b.first) })
	p.ranges = slices.Insert(p.ranges, i, n)
}

// compare compares r with a range of proto that begins at port.
func (r portRange) compare(proto uint8, port uint16) int {
	if r.proto != proto {
		return int(r.proto) - int(proto)
	}
	return int(r.first) - int(port)
}

// find returns the service of a port, nil for none. A nil p has none.
func (p *ports) find(proto uint8, port uint16) *service {
	if p == nil {
		return nil
	}
	if s := p.single[portKey{proto, port}]; s != nil {
		return s
	}
	if s := p.within(proto, port); s != nil || len(p.every) == 0 {
		return s
	}
	return p.every[proto]
}

// within returns the service whose range has the port.
func (p *ports) within(proto uint8, port uint16) *service {
	if len(p.ranges) == 0 {
		return nil
	}
	// The last range that begins at port or before.
	low, high := 0, len(p.ranges)
	for low < high {
		if mid := (low + high) / 2; p.ranges[mid].compare(proto, port) <= 0 {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == 0 {
		return nil
	}
	if r := p.ranges[low-1]; r.proto == proto && r.last >= port {
		return r.service
	}
	return nil
}
