"use strict";

// Loaded before a worker that knows no options: its Redis is at REDIS_URL, and its seconds are short.

const Bluebird = require("bluebird");
const redis = require("redis");

const { createClient } = redis;
redis.createClient = () => createClient(process.env.REDIS_URL);

const { delay } = Bluebird;
Bluebird.delay = (ms) => delay(ms / 1000);
