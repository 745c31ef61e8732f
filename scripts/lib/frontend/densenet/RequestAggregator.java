package densenet;

import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.ChannelOption;
import io.netty.handler.codec.http.HttpObjectAggregator;
import io.netty.handler.timeout.IdleStateHandler;

/** Netty's aggregator of requests, with a {@link Gate} before it, and an end for idle connections. */
public final class RequestAggregator extends HttpObjectAggregator {
    /** Seconds without a byte from or to a client, while no answer is due; longer than the front door keeps one. */
    static final int IDLE_SECONDS = 30;

    static {
        Waiting.start();
    }

    /** As HttpObjectAggregator's. */
    public RequestAggregator(int maxContentLength) {
        super(maxContentLength);
    }

    @Override
    public void handlerAdded(ChannelHandlerContext context) throws Exception {
        super.handlerAdded(context);
        // TorchServe's 0 throws away what wasn't sent yet when a connection is closed: after an error, its answer
        context.channel().config().setOption(ChannelOption.SO_LINGER, -1);
        context.pipeline()
                .addBefore(context.name(), "idle", new IdleStateHandler(0, 0, IDLE_SECONDS))
                .addBefore(context.name(), "gate", new Gate());
    }

    /** Gives up the request that is arriving. */
    void forget(ChannelHandlerContext context) {
        try {
            handlerRemoved(context); // Netty's only way to it
        } catch (Exception error) {
            throw new IllegalStateException(error);
        }
    }
}
