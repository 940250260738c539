"""Server on Ray Serve: the same application in several replicas; `serve run ldp_serving.ray_app:build`."""

from ldp_serving.ray_app.application import build as build
