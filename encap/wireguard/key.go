package wireguard

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"

	"golang.org/x/crypto/curve25519"
)

// Key is a private, public or preshared key. The zero value is none.
type Key [32]byte

// NewPrivateKey makes a private key (RFC 7748, section 5).
func NewPrivateKey() Key {
	var k Key
	_, _ = rand.Read(k[:]) // never fails
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

// ParseKey reads a key as `wg genkey` writes it: 44 characters of base64, with or without white space around them.
func ParseKey(text string) (Key, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(text))
	if err != nil || len(b) != len(Key{}) {
		return Key{}, errors.New("is not a key")
	}
	return Key(b), nil
}

// String writes k as `wg` does.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// IsZero reports whether k is no key.
func (k Key) IsZero() bool { return k == Key{} }

// Public returns the public key of the private key k.
func (k Key) Public() Key {
	p, err := curve25519.X25519(k[:], curve25519.Basepoint)
	if err != nil {
		return Key{} // only for a point of low order, which the base point is not
	}
	return Key(p)
}

// hex writes k as the protocol of device.IpcSet has it.
func (k Key) hex() string { return hex.EncodeToString(k[:]) }
