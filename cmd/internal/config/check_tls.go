package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// readTLS reads how a check of type https verifies the server, and the check's own certificate.
func readTLS(t *table, c *Check, own bool) {
	c.SNI = t.graphic("sni", c.SNI, `a host's name such as "www.example.com"`)
	readCA(t, c, own)
	c.Verify = t.boolean("verify", c.Verify)
	readCertificate(t, c, own)
}

// readCA reads the file of authorities. own has the meaning that it has in keyGroup.read.
func readCA(t *table, c *Check, own bool) {
	path, text := c.CAFile, c.CA
	const want = "the absolute path of a PEM file with certificates of authorities"
	if readPEM(t, "ca", want, own, &path, &text) && path != "" && !holdsCertificate(text) {
		t.faultAt("ca", "%s holds no certificate: want %s", show(path), want)
		return
	}
	c.CAFile, c.CA = path, text
}

// holdsCertificate reports whether the PEM text has a valid certificate.
func holdsCertificate(text string) bool { return x509.NewCertPool().AppendCertsFromPEM([]byte(text)) }

// readPEM reads the named file at once, since the program may lack the permission later. The name "" means no file. It
// sets path and text, and returns true, if the key is present and valid.
func readPEM(t *table, key, want string, wanted bool, path, text *string) bool {
	name, ok := t.text(key, *path, want)
	if _, written := t.values[key]; !ok || !written || !wanted {
		return false
	}
	if name == "" {
		*path, *text = "", ""
		return true
	}
	if !filepath.IsAbs(name) {
		t.faultAt(key, "%s is not an absolute path: want %s", show(name), want)
		return false
	}
	content, err := readBounded(name)
	if err != nil {
		reader := pick(key == "key", "the program's user", "every user")
		t.faultAt(key, "%v: want %s, which %s may read", err, want, reader)
		return false
	}
	*path, *text = name, string(content)
	return true
}

// readCertificate reads the client's own certificate and its key, which may be in the certificate's file.
func readCertificate(t *table, c *Check, own bool) {
	const (
		wantCert = "the absolute path of a PEM file with the client's certificate"
		wantKey  = "the absolute path of a PEM file with the private key of cert, without a password"
	)
	readCert := readPEM(t, "cert", wantCert, own, &c.CertFile, &c.Cert)
	if readCert && t.values["key"] == nil {
		c.KeyFile, c.Key = "", ""
	}
	readKey := readPEM(t, "key", wantKey, own, &c.KeyFile, &c.Key)
	if !readCert && !readKey || t.values["key"] != nil && !readKey || t.values["cert"] != nil && !readCert {
		return // nothing new, or a fault
	}
	switch {
	case c.CertFile != "" && !holdsCertificate(c.Cert):
		t.faultAt("cert", "%s holds no certificate: want %s", show(c.CertFile), wantCert)
		return
	case c.KeyFile != "" && c.Key == "":
		t.faultAt("key", "%s is empty: want %s", show(c.KeyFile), wantKey)
		return
	}
	if c.Cert == "" {
		if c.Key != "" {
			t.faultAt("key", "%s is the key of no certificate: want cert, too", show(c.KeyFile))
		}
		return
	}
	if c.Key == "" {
		c.Key = c.Cert
	}
	if err := checkKeyPair(c.Cert, c.Key); err != nil {
		key, want := "cert", wantCert
		if readKey && c.KeyFile != "" {
			key, want = "key", wantKey
		}
		t.faultAt(key, "%v: want %s", err, want)
	}
}

func checkKeyPair(cert, key string) error {
	_, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "tls: "))
	}
	return nil
}

// CheckCertificate returns the fault of the files of a client's certificate and its key, as a check of type https would
// report it.
func CheckCertificate(certFile, keyFile string) error {
	var text [2]string
	for i, path := range []string{certFile, keyFile} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%s is not an absolute path", show(path))
		}
		content, err := readBounded(path)
		if err != nil {
			return err
		}
		text[i] = string(content)
	}
	return checkKeyPair(text[0], text[1])
}
