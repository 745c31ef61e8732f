package densenet;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.lang.instrument.ClassFileTransformer;
import java.lang.instrument.Instrumentation;
import java.security.ProtectionDomain;
import java.util.Set;

/**
 * Java agent that makes TorchServe 0.12 read forms with {@link FormDecoder} instead of Netty 4.1.53's
 * HttpPostRequestDecoder, which takes any number of fields (CVE-2024-29025).
 *
 * <p>It writes one name anew in the constant pools of the two classes that read forms, as they are loaded. Nothing
 * else changes: FormDecoder has the constructor and the methods that those two call.
 */
public final class FormLimits implements ClassFileTransformer {
    private static final Set<String> READERS =
            Set.of(
                    "org/pytorch/serve/http/api/rest/InferenceRequestHandler",
                    "org/pytorch/serve/workflow/api/http/WorkflowInferenceRequestHandler");
    private static final String THEIRS = "io/netty/handler/codec/http/multipart/HttpPostRequestDecoder";
    private static final String OURS = "densenet/FormDecoder";

    /** What the JVM calls before TorchServe's main. */
    public static void premain(String arguments, Instrumentation instrumentation) {
        instrumentation.addTransformer(new FormLimits());
    }

    @Override
    public byte[] transform(
            ClassLoader loader, String name, Class<?> redefined, ProtectionDomain domain, byte[] code) {
        if (!READERS.contains(name)) {
            return null;
        }
        try {
            return renamed(code);
        } catch (IOException | RuntimeException error) {
            // without the limit the server must not run, and the JVM swallows what a transformer throws
            System.err.println("frontend limits: " + name + " isn't TorchServe 0.12's: " + error);
            Runtime.getRuntime().halt(1);
            return null;
        }
    }

    /** The class file with THEIRS replaced by OURS (format: Java Virtual Machine Specification, 4.1 and 4.4). */
    private static byte[] renamed(byte[] code) throws IOException {
        DataInputStream in = new DataInputStream(new ByteArrayInputStream(code));
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        DataOutputStream out = new DataOutputStream(bytes);
        out.writeLong(in.readLong()); // magic, version
        int count = in.readUnsignedShort();
        out.writeShort(count);
        int found = 0;
        for (int index = 1; index < count; index++) {
            int tag = in.readUnsignedByte();
            out.writeByte(tag);
            if (tag == 1) { // Utf8
                String text = in.readUTF();
                boolean theirs = text.equals(THEIRS);
                found += theirs ? 1 : 0;
                out.writeUTF(theirs ? OURS : text);
                continue;
            }
            out.write(in.readNBytes(size(tag)));
            if (tag == 5 || tag == 6) { // Long and Double take two places
                index++;
            }
        }
        if (found != 1) {
            throw new IllegalStateException("it names the form decoder " + found + " times");
        }
        in.transferTo(out);
        return bytes.toByteArray();
    }

    private static int size(int tag) {
        switch (tag) {
            case 3: // Integer
            case 4: // Float
            case 9: // Fieldref
            case 10: // Methodref
            case 11: // InterfaceMethodref
            case 12: // NameAndType
            case 17: // Dynamic
            case 18: // InvokeDynamic
                return 4;
            case 5: // Long
            case 6: // Double
                return 8;
            case 7: // Class
            case 8: // String
            case 16: // MethodType
            case 19: // Module
            case 20: // Package
                return 2;
            case 15: // MethodHandle
                return 3;
            default:
                throw new IllegalStateException("constant of kind " + tag);
        }
    }
}
