"""Drawings of classic control: states of gymnax, geometry and angles of Gymnasium."""

import math
from typing import Any

import numpy as np

from jaxrl.rendering.drawing.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    SKY,
    YELLOW,
    Canvas,
    Point,
    polar,
    rotate,
)


def cart_pole(state: Any, params: Any, size: int) -> np.ndarray:
    """Draw the cart on its track, and the pole; an episode ends beyond the two posts."""
    limit, pole = float(params.x_threshold), 2 * float(params.length)
    canvas = Canvas(size, -limit - 0.4, limit + 0.4, -0.5, max(pole, 0.6) + 0.9)
    canvas.line([(-limit - 0.4, -0.14), (limit + 0.4, -0.14)], 0.02, GREY)
    for post in (-limit, limit):
        canvas.line([(post, -0.26), (post, -0.02)], 0.035, ORANGE)
    x, axle = float(state.x), (float(state.x), 0.14)
    canvas.box(x - 0.28, -0.08, x + 0.28, 0.2, INK, rounded=0.05)
    for wheel in (-0.16, 0.16):
        canvas.circle((x + wheel, -0.08), 0.06, INK, outline=PALE)
    angle = math.pi / 2 - float(state.theta)  # theta is clockwise from upright
    canvas.line([axle, polar(axle, pole, angle)], 0.1, YELLOW)
    canvas.circle(axle, 0.055, BLUE)
    return canvas.picture()


def acrobot(state: Any, params: Any, size: int) -> np.ndarray:
    """Draw two links hanging from a joint; the tip must get above the line."""
    first, second = float(params.link_length_1), float(params.link_length_2)
    reach = 1.15 * (first + second)
    canvas = Canvas(size, -reach, reach, -reach, reach)
    # The goal is at height 1 above the joint, whatever the lengths (a rule of the task).
    canvas.line([(-reach, 1.0), (reach, 1.0)], 0.02, GREEN)
    down = -math.pi / 2
    elbow = polar((0.0, 0.0), first, down + float(state.joint_angle1))
    both = float(state.joint_angle1) + float(state.joint_angle2)
    tip = polar(elbow, second, down + both)
    canvas.line([(0.0, 0.0), elbow], 0.17, BLUE)
    canvas.line([elbow, tip], 0.17, SKY)
    for joint in ((0.0, 0.0), elbow):
        canvas.circle(joint, 0.1, YELLOW, outline=INK)
    canvas.circle(tip, 0.07, ORANGE)
    return canvas.picture()


def pendulum(state: Any, params: Any, size: int) -> np.ndarray:
    """Draw the rod, upright at angle 0, and the last torque as an arc in its direction."""
    length = float(params.l)
    reach = 1.35 * length
    canvas = Canvas(size, -reach, reach, -reach, reach)
    canvas.circle((0.0, 0.0), length, PALE)
    canvas.circle((0.0, 0.0), 0.985 * length, "#F4F2EC")
    angle = math.pi / 2 + float(state.theta)  # theta is counter-clockwise
    canvas.line([(0.0, 0.0), polar((0.0, 0.0), length, angle)], 0.17 * length, ORANGE)
    torque = float(np.squeeze(state.last_u)) / float(params.max_torque)
    if abs(torque) > 0.02:
        _torque(canvas, 0.42 * length, torque)
    canvas.circle((0.0, 0.0), 0.05 * length, INK)
    return canvas.picture()


def _torque(canvas: Canvas, radius: float, torque: float) -> None:
    """Draw an arrow along an arc, longer for more torque, counter-clockwise if positive."""
    start, extent = math.pi / 2, 0.75 * math.pi * torque
    centre, end = (0.0, 0.0), start + extent
    canvas.arc(centre, radius, (start - extent, end), 0.1 * radius, BLUE)
    head = [(0.0, 0.24 * radius), (0.0, -0.24 * radius), (0.36 * radius, 0.0)]
    forward = end + math.copysign(math.pi / 2, torque)
    canvas.polygon(rotate(head, forward, polar(centre, radius, end)), BLUE)


def mountain_car(state: Any, params: Any, size: int) -> np.ndarray:
    """Draw the car in the valley, and the flag at the goal."""
    low, high = float(params.min_position), float(params.max_position)
    canvas = Canvas(size, low - 0.06, high + 0.06, -0.05, 1.25)
    x = np.linspace(low - 0.06, high + 0.06, 120)
    hill: list[Point] = [(float(a), _height(a)) for a in x]
    canvas.polygon([*hill, (high + 0.06, -0.05), (low - 0.06, -0.05)], PALE)
    canvas.line(hill, 0.012, GREY)
    goal = float(params.goal_position)
    pole = [(goal, _height(goal)), (goal, _height(goal) + 0.2)]
    canvas.line(pole, 0.012, INK)
    flag = [(0.0, 0.2), (0.0, 0.12), (0.09, 0.16)]
    canvas.polygon(rotate(flag, 0.0, (goal, _height(goal))), GREEN)
    position = float(state.position)
    slope = math.atan(0.45 * 3 * math.cos(3 * position))
    at = (position, _height(position))
    body = [(-0.075, 0.03), (0.075, 0.03), (0.06, 0.085), (-0.06, 0.085)]
    canvas.polygon(rotate(body, slope, at), BLUE)
    for wheel in rotate([(-0.042, 0.026), (0.042, 0.026)], slope, at):
        canvas.circle(wheel, 0.026, INK, outline=PALE)
    return canvas.picture()


def _height(x: float) -> float:
    """Height of the hill as Gymnasium draws it."""
    return 0.45 * math.sin(3 * float(x)) + 0.55
