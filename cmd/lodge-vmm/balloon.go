package main

import "errors"

var errNoBalloon = errors.New("the guest has no balloon: add [balloon] to its definition")

func (g *guest) setBalloon(uint64) error          { return errNoBalloon }
func (g *guest) balloonStatus() map[string]uint64 { return nil }
