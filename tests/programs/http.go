// SPDX-License-Identifier: Apache-2.0

// Go's net/http: `http serve DIRECTORY`, which writes its certificate there, and
// `http 1|2 HOST COUNT CERTIFICATE`, which says `ok`, the number of requests, and that of connections.
package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	plain  = ":9300"
	secure = ":9301"
	// Fewer than the streams that a server lets in on one connection.
	concurrent = 200
)

func main() {
	if os.Args[1] == "serve" {
		log.Fatal(serve(os.Args[2]))
	}
	count, err := strconv.Atoi(os.Args[3])
	check(err)
	check(request(os.Args[1] == "2", os.Args[2], count, os.Args[4]))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// The SHA-256 of the request's body, its protocol, and the body itself.
func answer(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	sum := sha256.Sum256(body)
	w.Header().Set("x-sha256", hex.EncodeToString(sum[:]))
	w.Header().Set("x-protocol", r.Proto)
	w.Write(body)
}

func serve(dir string) error {
	certificate, err := selfSigned(filepath.Join(dir, "cert.pem"))
	if err != nil {
		return err
	}
	handler := http.HandlerFunc(answer)
	config := &tls.Config{Certificates: []tls.Certificate{certificate}}
	go func() { check(http.ListenAndServe(plain, handler)) }()
	server := &http.Server{Addr: secure, Handler: handler, TLSConfig: config}
	return server.ListenAndServeTLS("", "")
}

func selfSigned(path string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		DNSNames: []string{"go"}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	check(err)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, os.WriteFile(path, text, 0o644)
}

func request(two bool, host string, count int, certificate string) error {
	text, err := os.ReadFile(certificate)
	check(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	var connections atomic.Int64
	dial := (&net.Dialer{}).DialContext
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "go"}, ForceAttemptHTTP2: two,
		MaxConnsPerHost: 20, MaxIdleConnsPerHost: 20, DialContext: dial,
	}
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		connections.Add(1)
		return dial(ctx, network, address)
	}
	url, protocol := "http://"+host+plain, "HTTP/1.1"
	if two {
		url, protocol = "https://"+host+secure, "HTTP/2.0"
	}
	client := &http.Client{Transport: transport, Timeout: time.Minute}
	// The first connection is there before the others are wanted: HTTP/2 needs no further one.
	check(post(client, url, protocol, 1))
	failures, slots := make(chan error, count), make(chan struct{}, concurrent)
	var group sync.WaitGroup
	for i := 0; i < count; i++ {
		group.Add(1)
		go func(size int) {
			defer group.Done()
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := post(client, url, protocol, size); err != nil {
				failures <- err
			}
		}(1 + i*7919%150000)
	}
	group.Wait()
	close(failures)
	for err := range failures {
		return err
	}
	fmt.Println("ok", count, connections.Load())
	return nil
}

func post(client *http.Client, url, protocol string, size int) error {
	body := make([]byte, size)
	rand.Read(body)
	response, err := client.Post(url, "application/octet-stream", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	back, err := io.ReadAll(response.Body)
	sum := sha256.Sum256(body)
	switch {
	case err != nil:
		return err
	case response.Header.Get("x-protocol") != protocol:
		return fmt.Errorf("the server saw %s, expected %s", response.Header.Get("x-protocol"), protocol)
	case response.Header.Get("x-sha256") != hex.EncodeToString(sum[:]):
		return fmt.Errorf("the server read something else")
	case !bytes.Equal(back, body):
		return fmt.Errorf("the answer came otherwise")
	}
	return nil
}
