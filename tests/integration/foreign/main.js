"use strict";

// A worker as Resc's protocol has it. It knows lists and a set, and nothing of who fills them.

const Bluebird = require("bluebird");
const redis = require("redis");

Bluebird.promisifyAll(redis.RedisClient.prototype);

const TODO = "trt/plantA/todo-queue";
const QUEUED = "trt/plantA/todo-set";
const TAKEN = "trt/plantA/taken";
const DONE = "global/done";

async function main() {
    const client = redis.createClient();
    console.log(`listening on ${TODO}`);
    for (;;) {
        const task = await client.brpoplpushAsync(TODO, TAKEN, 60);
        if (task !== null) {
            await client.zremAsync(QUEUED, task); // from now on it may be queued again
            await Bluebird.delay(10000); // hard work
            console.log(`Executing ${task}`);
            await client.lpushAsync(DONE, task);
            await client.lremAsync(TAKEN, 1, task);
        }
    }
}

main();
