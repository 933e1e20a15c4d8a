// Package packet is views over headers, and what both ends of a tunnel do with a packet's bytes: a buffer with room for
// tunnel headers, checksums, the key of a flow, splitting, ICMP errors.
//
// A GSO packet stands for several packets with the same headers (generic segmentation offload): the headers of one, and
// the payloads of all. The kernel gives and takes such packets of up to 64 KB; Offload says what is left to do in one.
package packet
