package main

import (
	"fmt"
	"image/color"
	"net"
	"net/http"
	"time"

	"github.com/lodgehv/lodge/e2e/laptop"
)

// pageColor is the colour of the page that is served.
var pageColor = color.RGBA{0xd0, 0xe4, 0xff, 255}

// servePage serves a page, until the listener is closed, and returns its address in the notebook's network.
func servePage(l net.Listener) string {
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `<!DOCTYPE html><html><head><title>Lodge</title></head><body bgcolor="#%02x%02x%02x"><h1>It is there</h1>
<p>This page comes from the machine that emulates the notebook.</p></body></html>`, pageColor.R, pageColor.G, pageColor.B)
	})}
	go s.Serve(l) //nolint:errcheck // it ends with the listener
	return fmt.Sprintf("%s:%d/", laptop.Host, l.Addr().(*net.TCPAddr).Port)
}
