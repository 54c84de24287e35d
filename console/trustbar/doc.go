// Package trustbar draws what the seat itself has to say: the bar at the top of each screen, which tells whose picture is
// below it and where the keys go, and placards in place of a picture that there is not. It draws into memory of its own
// and shows nothing; console/compose puts it on screens, where no guest can draw.
//
// Names and labels come from people and from guests: they are text to be shown, never to be believed. Clean makes of them
// what cannot disturb the bar.
package trustbar
