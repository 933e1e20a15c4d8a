// Package packet reads and writes a packet's bytes: buffers, views over headers, checksums, flows, splitting and ICMP
// errors.
//
// A GSO packet stands for several packets with the same headers (generic segmentation offload): the headers of one, and
// the payloads of all. The kernel reads and writes such packets of up to 64 KB. Offload describes the work that is left
// to do in a packet.
package packet
